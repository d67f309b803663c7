//! Who may do what: built-in token issuer, clients, roles.

pub mod clients;
pub mod jwt;
pub mod oauth;
pub mod roles;
pub mod secret;
pub mod token;
