//! Helpers for ARM paths.

/// The api-version this client speaks for a path, by the innermost provider namespace in it.
pub fn api_version_for(path: &str) -> &'static str {
    let lower = path.to_ascii_lowercase();
    let after = lower.rsplit("/providers/").next().unwrap_or_default();
    if after.starts_with("microsoft.storage/") {
        "2023-05-01"
    } else if after.starts_with("microsoft.network/") {
        "2023-09-01"
    } else if after.starts_with("microsoft.compute/") {
        "2024-03-01"
    } else {
        "2025-08-01"
    }
}

/// The id of the vault that a path lies in, as it is spelled there.
pub fn vault_path_of(path: &str) -> Option<&str> {
    // Byte offsets found in the lower-cased text are good for the original: ASCII lower-casing keeps lengths.
    let lower = path.to_ascii_lowercase();
    let marker = "/providers/microsoft.recoveryservices/vaults/";
    let start = lower.find(marker)? + marker.len();
    let rest = &path[start..];
    let end = rest.find(['/', '?']).map_or(path.len(), |at| start + at);
    (end > start).then(|| &path[..end])
}

/// Path of a job of the vault that `path` lies in.
pub fn job_path(path: &str, job: &str) -> Option<String> {
    Some(format!(
        "{}/replicationJobs/{}",
        vault_path_of(path)?,
        encode_segment(job)
    ))
}

/// Percent-encodes what must not stand in one segment of a path or in a query value.
pub fn encode_segment(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// Path and query of an absolute address, or the text itself when it has no scheme.
pub(crate) fn path_and_query(address: &str) -> &str {
    match address.split_once("://") {
        Some((_, rest)) => rest.find('/').map_or("/", |at| &rest[at..]),
        None => address,
    }
}

/// `path` with an api-version, unless it names one.
pub(crate) fn with_api_version(path: &str) -> String {
    if path.contains("api-version=") {
        return path.to_owned();
    }
    let separator = if path.contains('?') { '&' } else { '?' };
    format!("{path}{separator}api-version={}", api_version_for(path))
}

/// Short text for errors and logs: method and the last two segments of the path.
pub(crate) fn describe(method: &str, path: &str) -> String {
    let path = path.split('?').next().unwrap_or_default();
    let segments: Vec<&str> = path.split('/').filter(|s| !s.is_empty()).collect();
    format!(
        "{method} {}",
        segments[segments.len().saturating_sub(2)..].join("/")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const VAULT: &str =
        "/Subscriptions/s/resourceGroups/g/providers/Microsoft.RecoveryServices/vaults/v1";

    #[test]
    fn the_vault_of_a_path_ends_where_its_name_ends() {
        assert_eq!(
            vault_path_of(&format!("{VAULT}/replicationFabrics/f")),
            Some(VAULT)
        );
        assert_eq!(
            vault_path_of(&format!("{VAULT}?api-version=1")),
            Some(VAULT)
        );
        assert_eq!(vault_path_of(VAULT), Some(VAULT));
        assert_eq!(vault_path_of("/subscriptions/s/resourceGroups/g"), None);
    }

    #[test]
    fn addresses_lose_their_host() {
        assert_eq!(path_and_query("https://elsewhere:1/a/b?c=d"), "/a/b?c=d");
        assert_eq!(path_and_query("/a/b?c=d"), "/a/b?c=d");
        assert_eq!(path_and_query("https://elsewhere"), "/");
    }

    proptest! {
        #[test]
        fn an_encoded_segment_never_breaks_the_path(text in ".*") {
            let encoded = encode_segment(&text);
            let safe = |b: u8| b.is_ascii_alphanumeric() || b"-._~%".contains(&b);
            prop_assert!(encoded.bytes().all(safe));
        }

        #[test]
        fn any_path_is_searched_without_panic(text in ".*") {
            let _ = vault_path_of(&text);
            let _ = path_and_query(&text);
            let _ = with_api_version(&text);
            let _ = describe("GET", &text);
        }
    }
}
