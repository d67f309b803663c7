//! From a path to the resource it names. Paths are compared without regard to case.

use arm_model::ArmId;

use crate::auth::oauth::percent;

/// What a path names.
#[derive(Debug, Clone)]
pub struct Route {
    /// Subscription.
    pub subscription: String,
    /// Resource group, when there is one.
    pub group: Option<String>,
    /// Lower-case namespace, empty without one.
    pub namespace: String,
    /// The resource, when the path holds one.
    pub id: Option<ArmId>,
    /// Lower-case types of the resource below the namespace, joined by `/`.
    pub kinds: String,
    /// Lower-case segment after the resource: a collection or an action.
    pub tail: Option<String>,
}

/// Reads a path that begins with `/subscriptions`. `None` when it has no such shape.
#[must_use]
pub fn parse(path: &str) -> Option<Route> {
    let parts: Vec<String> = path
        .trim_start_matches('/')
        .trim_end_matches('/')
        .split('/')
        .map(percent)
        .collect();
    if parts
        .iter()
        .any(|part| part.is_empty() || part.contains('/'))
    {
        return None;
    }
    let mut rest = parts.as_slice();
    let (keyword, subscription) = (rest.first()?, rest.get(1)?);
    if !keyword.eq_ignore_ascii_case("subscriptions") {
        return None;
    }
    rest = rest.get(2..)?;
    let mut group = None;
    if let [keyword, name, after @ ..] = rest
        && keyword.eq_ignore_ascii_case("resourcegroups")
    {
        group = Some(name.clone());
        rest = after;
    }
    let mut route = Route {
        subscription: subscription.clone(),
        group,
        namespace: String::new(),
        id: None,
        kinds: String::new(),
        tail: None,
    };
    match rest {
        [] => {}
        [tail] => route.tail = Some(tail.to_ascii_lowercase()),
        [keyword, namespace, segments @ ..] if keyword.eq_ignore_ascii_case("providers") => {
            route.namespace = namespace.to_ascii_lowercase();
            let pairs = segments.len() / 2 * 2;
            let (resource, tail) = segments.split_at_checked(pairs)?;
            route.tail = tail.first().map(|tail| tail.to_ascii_lowercase());
            if !resource.is_empty() {
                let scope = parts.get(..parts.len() - segments.len())?.join("/");
                route.id = Some(ArmId::parse(&format!("/{scope}/{}", resource.join("/"))).ok()?);
                route.kinds = resource
                    .chunks_exact(2)
                    .map(|pair| pair[0].to_ascii_lowercase())
                    .collect::<Vec<_>>()
                    .join("/");
            }
        }
        _ => return None,
    }
    Some(route)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn resource_collection_and_action_are_told_apart() {
        let base =
            "/Subscriptions/s/resourcegroups/g/providers/microsoft.recoveryservices/vaults/v";
        let vault = parse(base).expect("route");
        assert_eq!((vault.kinds.as_str(), vault.tail), ("vaults", None));
        let list = parse(&format!("{base}/replicationFabrics")).expect("route");
        assert_eq!(
            (list.kinds.as_str(), list.tail.as_deref()),
            ("vaults", Some("replicationfabrics"))
        );
        let action = parse(&format!("{base}/replicationFabrics/a%20b/remove/")).expect("route");
        assert_eq!(action.id.expect("id").name(), "a b");
        let vaults =
            parse("/subscriptions/s/providers/Microsoft.RecoveryServices/vaults").expect("route");
        assert_eq!(
            (vaults.kinds.as_str(), vaults.tail.as_deref()),
            ("", Some("vaults"))
        );
        assert!(
            parse("/subscriptions/s/resourceGroups/g")
                .expect("route")
                .group
                .is_some()
        );
    }

    proptest! {
        #[test]
        fn hostile_paths_never_panic(path in "(/[a-zA-Z%0-9.]{0,12}){0,12}") {
            let _ = parse(&path);
            let _ = parse(&format!("/subscriptions/s/providers/x{path}"));
        }
    }
}
