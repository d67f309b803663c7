//! ARM resource ids: `/subscriptions/{s}/resourceGroups/{g}/providers/{namespace}/{type}/{name}/…`.
//!
//! Compared without regard to case, written with the exact spelling of segment names: some clients
//! cut ids by segment name. Parsing never panics; it refuses text that is no id and says why.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Longest id that is accepted, in bytes.
const MAX_LENGTH: usize = 2048;

/// Segment names with the spelling that clients rely on.
const SEGMENTS: &[&str] = &[
    "subscriptions",
    "resourceGroups",
    "providers",
    "Microsoft.RecoveryServices",
    "Microsoft.Storage",
    "Microsoft.Network",
    "Microsoft.Compute",
    "vaults",
    "replicationFabrics",
    "replicationRecoveryServicesProviders",
    "replicationProtectionContainers",
    "replicationProtectionContainerMappings",
    "replicationProtectableItems",
    "replicationProtectedItems",
    "recoveryPoints",
    "targetComputeSizes",
    "registrationKeys",
    "replicationPolicies",
    "replicationRecoveryPlans",
    "replicationJobs",
    "drillSchedules",
    "replicationEvents",
    "replicationNetworks",
    "replicationNetworkMappings",
    "replicationStorageClassifications",
    "replicationStorageClassificationMappings",
    "replicationLogicalNetworks",
    "replicationAlertSettings",
    "replicationVaultSettings",
    "replicationVaultHealth",
    "replicationOperationStatus",
    "operationResults",
    "operationStatus",
    "storageAccounts",
    "virtualNetworks",
    "virtualMachines",
];

/// Why a text is no ARM id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no ARM resource id: {reason}")]
pub struct IdError {
    text: String,
    reason: &'static str,
}

/// A resource id. Equality and hash ignore case.
#[derive(Clone)]
pub struct ArmId {
    text: String,
    subscription: String,
    resource_group: Option<String>,
    namespace: Option<String>,
    /// (type, name) pairs below the namespace.
    segments: Vec<(String, String)>,
}

// === impl ArmId ===

impl ArmId {
    /// Reads an id. Segment names get their exact spelling, values stay as they are.
    ///
    /// # Errors
    /// When the text doesn't have the shape of an id.
    pub fn parse(text: &str) -> Result<Self, IdError> {
        let refuse = |reason| IdError {
            text: text.chars().take(200).collect(),
            reason,
        };
        if text.len() > MAX_LENGTH {
            return Err(refuse("too long"));
        }
        let body = text
            .strip_prefix('/')
            .ok_or_else(|| refuse("must begin with `/subscriptions/`"))?;
        let parts: Vec<&str> = body.strip_suffix('/').unwrap_or(body).split('/').collect();
        if parts.iter().any(|part| part.is_empty()) {
            return Err(refuse("empty segment"));
        }
        if parts.iter().any(|part| {
            part.chars()
                .any(|c| c.is_control() || matches!(c, '?' | '#' | '%' | '\\'))
        }) {
            return Err(refuse("character that ids don't have"));
        }
        let [keyword, subscription, rest @ ..] = parts.as_slice() else {
            return Err(refuse("must begin with `/subscriptions/{id}`"));
        };
        if !keyword.eq_ignore_ascii_case("subscriptions") {
            return Err(refuse("must begin with `/subscriptions/`"));
        }
        let (resource_group, rest) = match rest {
            [keyword, group, rest @ ..] if keyword.eq_ignore_ascii_case("resourceGroups") => {
                (Some((*group).to_owned()), rest)
            }
            _ => (None, rest),
        };
        let (namespace, rest) = match rest {
            [] => (None, rest),
            [keyword, namespace, rest @ ..] if keyword.eq_ignore_ascii_case("providers") => {
                (Some(spelling(namespace)), rest)
            }
            _ => return Err(refuse("expected `resourceGroups` or `providers`")),
        };
        if rest.len() % 2 != 0 {
            return Err(refuse("segments come in pairs of type and name"));
        }
        if namespace.is_some() && rest.is_empty() {
            return Err(refuse("no resource type after the namespace"));
        }
        let segments = rest
            .chunks_exact(2)
            .map(|pair| (spelling(pair[0]), pair[1].to_owned()))
            .collect();
        Ok(Self::assemble(
            (*subscription).to_owned(),
            resource_group,
            namespace,
            segments,
        ))
    }

    /// A resource directly below a resource group.
    #[must_use]
    pub fn in_group(
        subscription: &str,
        resource_group: &str,
        namespace: &str,
        kind: &str,
        name: &str,
    ) -> Self {
        Self::assemble(
            subscription.to_owned(),
            Some(resource_group.to_owned()),
            Some(namespace.to_owned()),
            vec![(kind.to_owned(), name.to_owned())],
        )
    }

    /// A resource group.
    #[must_use]
    pub fn group(subscription: &str, resource_group: &str) -> Self {
        Self::assemble(
            subscription.to_owned(),
            Some(resource_group.to_owned()),
            None,
            Vec::new(),
        )
    }

    fn assemble(
        subscription: String,
        resource_group: Option<String>,
        namespace: Option<String>,
        segments: Vec<(String, String)>,
    ) -> Self {
        let mut text = format!("/subscriptions/{subscription}");
        if let Some(group) = &resource_group {
            text.push_str("/resourceGroups/");
            text.push_str(group);
        }
        if let Some(namespace) = &namespace {
            text.push_str("/providers/");
            text.push_str(namespace);
        }
        for (kind, name) in &segments {
            text.push('/');
            text.push_str(kind);
            text.push('/');
            text.push_str(name);
        }
        Self {
            text,
            subscription,
            resource_group,
            namespace,
            segments,
        }
    }

    /// The id of a child resource.
    #[must_use]
    pub fn child(&self, kind: &str, name: &str) -> Self {
        let mut segments = self.segments.clone();
        segments.push((kind.to_owned(), name.to_owned()));
        Self::assemble(
            self.subscription.clone(),
            self.resource_group.clone(),
            self.namespace.clone(),
            segments,
        )
    }

    /// The id one level up: the parent resource, or the group of a top-level resource.
    #[must_use]
    pub fn parent(&self) -> Option<Self> {
        let mut segments = self.segments.clone();
        match segments.pop() {
            None => None,
            Some(_) if segments.is_empty() => Some(Self::assemble(
                self.subscription.clone(),
                self.resource_group.clone(),
                None,
                Vec::new(),
            )),
            Some(_) => Some(Self::assemble(
                self.subscription.clone(),
                self.resource_group.clone(),
                self.namespace.clone(),
                segments,
            )),
        }
    }

    /// The ancestor (or self) with that many type/name pairs.
    #[must_use]
    pub fn ancestor(&self, pairs: usize) -> Option<Self> {
        let segments = self.segments.get(..pairs)?.to_vec();
        Some(Self::assemble(
            self.subscription.clone(),
            self.resource_group.clone(),
            self.namespace.clone(),
            segments,
        ))
    }

    /// The id as it goes onto the wire.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Lower-case form, equal for equal ids: the key in stores.
    #[must_use]
    pub fn key(&self) -> String {
        self.text.to_ascii_lowercase()
    }

    /// Subscription.
    #[must_use]
    pub fn subscription(&self) -> &str {
        &self.subscription
    }

    /// Resource group, when the id has one.
    #[must_use]
    pub fn resource_group(&self) -> Option<&str> {
        self.resource_group.as_deref()
    }

    /// Provider namespace, such as `Microsoft.RecoveryServices`.
    #[must_use]
    pub fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref()
    }

    /// (type, name) pairs below the namespace.
    #[must_use]
    pub fn segments(&self) -> &[(String, String)] {
        &self.segments
    }

    /// Last segment: the resource's name.
    #[must_use]
    pub fn name(&self) -> &str {
        match self.segments.last() {
            Some((_, name)) => name,
            None => self.resource_group.as_deref().unwrap_or(&self.subscription),
        }
    }

    /// Name of the ancestor of a type, such as the fabric of a protected item.
    #[must_use]
    pub fn name_of(&self, kind: &str) -> Option<&str> {
        self.segments
            .iter()
            .find(|(segment, _)| segment.eq_ignore_ascii_case(kind))
            .map(|(_, name)| name.as_str())
    }

    /// Full type, such as `Microsoft.RecoveryServices/vaults/replicationFabrics`.
    #[must_use]
    pub fn resource_type(&self) -> String {
        let Some(namespace) = &self.namespace else {
            return "Microsoft.Resources/resourceGroups".to_owned();
        };
        let mut kind = namespace.clone();
        for (segment, _) in &self.segments {
            kind.push('/');
            kind.push_str(segment);
        }
        kind
    }

    /// Whether the id has this namespace and exactly these types.
    #[must_use]
    pub fn is_of(&self, namespace: &str, kinds: &[&str]) -> bool {
        self.namespace
            .as_deref()
            .is_some_and(|own| own.eq_ignore_ascii_case(namespace))
            && self.segments.len() == kinds.len()
            && self
                .segments
                .iter()
                .zip(kinds)
                .all(|((own, _), kind)| own.eq_ignore_ascii_case(kind))
    }

    pub(crate) fn refusal(&self, reason: &'static str) -> IdError {
        IdError {
            text: self.text.clone(),
            reason,
        }
    }
}

/// The exact spelling of a segment name; unknown names stay as they are.
#[must_use]
pub fn spelling(segment: &str) -> String {
    SEGMENTS
        .iter()
        .find(|known| known.eq_ignore_ascii_case(segment))
        .map_or_else(|| segment.to_owned(), |known| (*known).to_owned())
}

impl PartialEq for ArmId {
    fn eq(&self, other: &Self) -> bool {
        self.text.eq_ignore_ascii_case(&other.text)
    }
}

impl Eq for ArmId {}

impl Hash for ArmId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key().hash(state);
    }
}

impl fmt::Display for ArmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for ArmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ArmId({})", self.text)
    }
}

impl FromStr for ArmId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        Self::parse(text)
    }
}

impl Serialize for ArmId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for ArmId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ITEM: &str = "/Subscriptions/s/resourcegroups/G/PROVIDERS/microsoft.recoveryservices/VAULTS/v/replicationfabrics/f/replicationProtectionContainers/c/replicationprotecteditems/i";

    #[test]
    fn segment_names_get_their_exact_spelling_and_names_keep_theirs() {
        let id = ArmId::parse(ITEM).expect("an id");
        assert_eq!(
            id.as_str(),
            "/subscriptions/s/resourceGroups/G/providers/Microsoft.RecoveryServices/vaults/v/replicationFabrics/f/replicationProtectionContainers/c/replicationProtectedItems/i"
        );
        assert_eq!(id.name(), "i");
        assert_eq!(id.name_of("replicationFabrics"), Some("f"));
        assert_eq!(
            id.parent().expect("container").resource_type(),
            "Microsoft.RecoveryServices/vaults/replicationFabrics/replicationProtectionContainers"
        );
    }

    #[test]
    fn ids_that_differ_in_case_only_are_equal() {
        assert_eq!(
            ArmId::parse(ITEM).expect("id"),
            ArmId::parse(&ITEM.to_ascii_uppercase()).expect("id")
        );
    }

    #[test]
    fn text_that_is_no_id_is_refused() {
        for text in [
            "",
            "/",
            "subscriptions/x",
            "/subscriptions",
            "/subscriptions//resourceGroups/g",
            "/subscriptions/s/resourceGroups/g/providers/N",
            "/subscriptions/s/resourceGroups/g/providers/N/t",
            "/subscriptions/s/x/y",
            "/subscriptions/s?x=1",
        ] {
            assert!(ArmId::parse(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn hostile_text_never_panics_and_what_is_read_is_read_again(text in "(/[a-zA-Z.é]{0,20}){0,9}") {
            if let Ok(id) = ArmId::parse(&text) {
                prop_assert_eq!(&ArmId::parse(id.as_str()).expect("own text"), &id);
            }
        }
    }
}
