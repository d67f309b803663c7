//! Life cycle of a protected VM as a pure state machine; retention, RPO and plan order.
