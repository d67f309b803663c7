//! Stored objects as Terraform's state file has them: JSON in the shape of the schema that wrote them.

use serde_json::Value as Json;

use crate::diagnostics::Diagnostics;
use crate::object::Object;
use crate::schema::Schema;

/// JSON of a stored object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RawState {
    json: Vec<u8>,
}

impl RawState {
    /// From JSON bytes.
    pub fn new(json: impl Into<Vec<u8>>) -> Self {
        Self { json: json.into() }
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.json
    }

    /// As plain JSON. Numbers that `f64` does not hold lose digits here; [`RawState::decode`] keeps them.
    pub fn json(&self) -> Result<Json, Diagnostics> {
        serde_json::from_slice(&self.json)
            .map_err(|error| Diagnostics::error("Stored state is not JSON", format!("{error}.")))
    }

    /// By a schema, exactly: attributes that the schema lacks are dropped, those that are missing become null.
    pub fn decode(&self, schema: &Schema) -> Result<Object, Diagnostics> {
        crate::json::decode_state(&self.json, &schema.ty()).map_err(|error| {
            Diagnostics::error("Stored state does not fit the schema", format!("{error}."))
        })
    }
}
