//! Tags: the user's, and the marks by which our own resources are known again.
//!
//! Azure: 50 tags a resource; a name up to 512 characters without `< > % & \ ? /`, a value up to 256.

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::finding::Findings;

/// Tag that says which recovery a resource belongs to.
pub const OWNER_TAG: &str = "siterecovery-recovery-id";
/// Tag that says from which body a resource was made, so that a leftover of another plan is not taken for this one's.
pub const PLAN_TAG: &str = "siterecovery-plan";

const MOST_TAGS: usize = 50;
const LONGEST_NAME: usize = 512;
const LONGEST_VALUE: usize = 256;

/// Checks the user's tags of one kind of resource.
pub(crate) fn check(about: &str, tags: &BTreeMap<String, String>, findings: &mut Findings) {
    if tags.len() + 2 > MOST_TAGS {
        findings.error(
            about,
            format!(
                "{} tags are too many: Azure takes 50, and two are ours",
                tags.len()
            ),
            "remove some",
        );
    }
    let mut folded = std::collections::BTreeSet::new();
    for (name, value) in tags {
        let lower = name.to_lowercase();
        if lower == OWNER_TAG || lower == PLAN_TAG {
            findings.error(
                about,
                format!("the tag `{name}` is ours"),
                "give it another name",
            );
        } else if !folded.insert(lower) {
            // Names of tags are compared without case by Azure, so the second would replace the first.
            findings.error(
                about,
                format!("the tag `{name}` is there twice, with different case"),
                "keep one of them",
            );
        }
        let length = name.chars().count();
        if length == 0
            || length > LONGEST_NAME
            || name.contains(['<', '>', '%', '&', '\\', '?', '/'])
        {
            findings.error(
                about,
                format!("`{name}` is no name of a tag"),
                "use up to 512 characters without < > % & \\ ? /",
            );
        }
        if value.chars().count() > LONGEST_VALUE {
            findings.error(
                about,
                format!("the value of the tag `{name}` is too long"),
                "use up to 256 characters",
            );
        }
    }
}

/// Puts the user's tags and ours into a body. The plan's mark is a digest of the body without it.
pub(crate) fn mark(body: &mut Value, wished: &BTreeMap<String, String>, owner: &str) {
    let mut tags: Map<String, Value> = wished
        .iter()
        .map(|(name, value)| (name.clone(), Value::from(value.as_str())))
        .collect();
    tags.insert(OWNER_TAG.to_owned(), Value::from(owner));
    if let Some(body) = body.as_object_mut() {
        body.insert("tags".to_owned(), Value::Object(tags));
    }
    // Bodies are built by the same code each time, so equal ones have equal texts.
    let digest = Sha256::digest(body.to_string().as_bytes());
    let short: String = digest.iter().take(10).map(|b| format!("{b:02x}")).collect();
    if let Some(tags) = body.get_mut("tags") {
        tags[PLAN_TAG] = Value::from(short);
    }
}

/// Value of a tag of a resource; names are compared without case, as Azure does.
pub(crate) fn value_of<'a>(resource: &'a Value, name: &str) -> Option<&'a str> {
    resource
        .get("tags")?
        .as_object()?
        .iter()
        .find(|(key, _)| key.eq_ignore_ascii_case(name))?
        .1
        .as_str()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn findings(tags: &[(&str, &str)]) -> Vec<String> {
        let tags = tags
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        let mut found = Findings::default();
        check("VM x", &tags, &mut found);
        found.0.into_iter().map(|f| f.text).collect()
    }

    #[test]
    fn tags_that_azure_refuses_are_found_before() {
        assert!(findings(&[("team", "web"), ("cost", "")]).is_empty());
        assert_eq!(findings(&[("a/b", "x")]).len(), 1);
        assert_eq!(findings(&[("Team", "x"), ("team", "y")]).len(), 1);
        assert_eq!(findings(&[("SiteRecovery-Recovery-Id", "x")]).len(), 1);
        assert_eq!(findings(&[("long", &"v".repeat(257))]).len(), 1);
    }

    proptest! {
        #[test]
        fn another_body_has_another_mark(a in 0_u32..1000, b in 0_u32..1000) {
            let made = |n: u32| {
                let mut body = json!({ "properties": { "n": n } });
                mark(&mut body, &BTreeMap::new(), "r-1");
                body
            };
            let (first, second) = (made(a), made(b));
            prop_assert_eq!(value_of(&first, OWNER_TAG), Some("r-1"));
            prop_assert_eq!(a == b, value_of(&first, PLAN_TAG) == value_of(&second, PLAN_TAG));
        }
    }
}
