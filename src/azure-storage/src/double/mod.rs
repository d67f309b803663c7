//! An in-process blob service for tests.
