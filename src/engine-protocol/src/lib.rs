//! The protocol between engine and orchestrator: messages, enrolment, mutual TLS.
