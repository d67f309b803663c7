//! The envelope that every resource has, and the page that every list has.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Fields that this crate has no name for; kept and written again.
pub type Extra = Map<String, Value>;

/// A resource as it goes over the wire.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Resource<P> {
    /// ARM id; empty in requests.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub id: String,
    /// Last segment of the id; empty in requests.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Resource type; empty in requests.
    #[serde(default, rename = "type", skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// Region, for top-level resources.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub location: Option<String>,
    /// Tags, for top-level resources.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tags: Option<BTreeMap<String, String>>,
    /// Version for `If-Match`, for top-level resources.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etag: Option<String>,
    /// What the resource is about.
    pub properties: P,
    /// `sku`, `kind`, `identity` and what else there is.
    #[serde(flatten)]
    pub extra: Extra,
}

// === impl Resource ===

impl<P> Resource<P> {
    /// A request body.
    #[must_use]
    pub fn request(properties: P) -> Self {
        Self {
            id: String::new(),
            name: String::new(),
            kind: String::new(),
            location: None,
            tags: None,
            etag: None,
            properties,
            extra: Extra::new(),
        }
    }

    /// An answer: envelope from the id.
    #[must_use]
    pub fn answer(id: &crate::ArmId, properties: P) -> Self {
        Self {
            id: id.as_str().to_owned(),
            name: id.name().to_owned(),
            kind: id.resource_type(),
            ..Self::request(properties)
        }
    }

    /// With a region.
    #[must_use]
    pub fn at(mut self, location: &str) -> Self {
        self.location = Some(location.to_owned());
        self
    }
}

/// One page of a list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Page<T> {
    /// Entries.
    #[serde(default = "Vec::new")]
    pub value: Vec<T>,
    /// Absolute URL of the next page; `null` on the last.
    #[serde(default)]
    pub next_link: Option<String>,
}

/// Who made and changed a resource.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SystemData {
    /// Name of the maker.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_by: Option<String>,
    /// Instant, ISO 8601.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_at: Option<String>,
}

/// An object that only says which variant it is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct InstanceType {
    /// Variant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance_type: Option<String>,
    /// Further fields of the variant.
    #[serde(flatten)]
    pub extra: Extra,
}
