//! Rules of a storage account in Azure: endpoint, container, credential, proxy, stripes.

use super::Violation;

/// Most page blobs that a disk's base is spread over.
pub const MAX_STRIPES: u32 = 64;
/// Where Entra ID signs clients in when an account names no other place.
pub const DEFAULT_AUTHORITY: &str = "https://login.microsoftonline.com";

/// Blob endpoint, such as `https://account.blob.core.windows.net`. Signatures travel in the query, so anything but
/// HTTPS is taken for the own machine only (an emulator).
///
/// # Errors
/// The rule that is broken.
pub fn blob_endpoint(url: &str) -> Result<(), Violation> {
    let advice = "Write `https://account.blob.core.windows.net`, without a query; `http://` only with 127.0.0.1 or localhost.";
    let Some((scheme, host, rest)) = parts(url) else {
        return Err(Violation::new(
            "The blob endpoint is no address.".to_owned(),
            advice,
        ));
    };
    let own = matches!(host_name(host), "127.0.0.1" | "localhost" | "[::1]");
    if (scheme == "https" || (scheme == "http" && own)) && !rest.contains(['?', '#']) {
        return Ok(());
    }
    Err(Violation::new(
        format!("`{}` can't be a blob endpoint.", short(url)),
        advice,
    ))
}

/// Account name out of an endpoint: the first label of the host, or for an address or a local name the first segment
/// of the path, as emulators have it.
#[must_use]
pub fn account_of_endpoint(url: &str) -> Option<&str> {
    let (_, host, rest) = parts(url)?;
    let name = host_name(host);
    let path = rest.trim_matches('/').split('/').next().unwrap_or_default();
    let account = if path.is_empty() {
        name.split('.').next().unwrap_or_default()
    } else {
        path
    };
    (!account.is_empty()).then_some(account)
}

/// Container name: 3 to 63 lower-case letters, digits and single hyphens, not at the ends.
///
/// # Errors
/// The rule that is broken.
pub fn container_name(name: &str) -> Result<(), Violation> {
    let shaped = name
        .bytes()
        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-')
        && !name.contains("--");
    if shaped && (3..=63).contains(&name.len()) {
        return Ok(());
    }
    Err(Violation::new(
        format!("`{}` can't be the name of a container.", short(name)),
        "Use 3 to 63 lower-case letters, digits and single hyphens, with a letter or digit at both ends.",
    ))
}

/// The container of a vault where the account names none; `vault_key` is the vault's folder name in the store.
#[must_use]
pub fn default_container(vault_key: &str) -> String {
    let mut name = String::new();
    for letter in vault_key.chars().map(|c| c.to_ascii_lowercase()) {
        let letter = if letter.is_ascii_alphanumeric() {
            letter
        } else {
            '-'
        };
        if letter != '-' || !(name.is_empty() || name.ends_with('-')) {
            name.push(letter);
        }
    }
    name.truncate(63);
    name.trim_matches('-').to_owned()
}

/// Account key: base64. The text of the rule never holds the key.
///
/// # Errors
/// The rule that is broken.
pub fn account_key(key: &str) -> Result<(), Violation> {
    let body = key.trim_end_matches('=');
    let shaped = key.len().is_multiple_of(4)
        && key.len() - body.len() <= 2
        && body
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'+' || b == b'/');
    if shaped && key.len() >= 24 {
        return Ok(());
    }
    Err(Violation::new(
        "The account key is no key of a storage account.",
        "Give the key as the Azure portal shows it under \"Access keys\": base64, usually 88 characters.",
    ))
}

/// Stripes of a disk's base.
///
/// # Errors
/// The rule that is broken.
pub fn stripes(number: u32) -> Result<(), Violation> {
    if (1..=MAX_STRIPES).contains(&number) {
        return Ok(());
    }
    Err(Violation::new(
        format!("A base of {number} stripes is not possible."),
        format!("Use 1 to {MAX_STRIPES}."),
    ))
}

/// HTTP proxy for storage traffic. It is shown and stored openly, so it holds no password.
///
/// # Errors
/// The rule that is broken.
pub fn proxy_url(url: &str) -> Result<(), Violation> {
    match parts(url) {
        Some(("http" | "https", _, rest)) if rest.trim_matches('/').is_empty() => Ok(()),
        _ => Err(Violation::new(
            "The proxy is no address such as `http://proxy.example.com:3128`.",
            "Give scheme, host and port, without user and password.",
        )),
    }
}

/// Where a client signs in.
///
/// # Errors
/// The rule that is broken.
pub fn authority(url: &str) -> Result<(), Violation> {
    let advice =
        "Write `https://login.microsoftonline.com`, or the address of the cloud in question.";
    match parts(url) {
        Some(("https", _, rest)) if !rest.contains(['?', '#']) => Ok(()),
        Some(("http", host, _))
            if matches!(host_name(host), "127.0.0.1" | "localhost" | "[::1]") =>
        {
            Ok(())
        }
        _ => Err(Violation::new(
            format!("`{}` is no place to sign in.", short(url)),
            advice,
        )),
    }
}

/// Further certificate authorities.
///
/// # Errors
/// The rule that is broken.
pub fn ca_pem(text: &str) -> Result<(), Violation> {
    let (begin, end) = (
        text.matches("-----BEGIN CERTIFICATE-----").count(),
        text.matches("-----END CERTIFICATE-----").count(),
    );
    if begin > 0 && begin == end && !text.contains("PRIVATE KEY") {
        return Ok(());
    }
    Err(Violation::new(
        "The certificate authorities are no certificates in PEM form.",
        "Give the text of one or more certificates, without keys.",
    ))
}

/// Scheme, host with port, and the rest. `None` for anything with a user, blanks or without a host.
fn parts(url: &str) -> Option<(&str, &str, &str)> {
    let (scheme, rest) = url.split_once("://")?;
    if url
        .chars()
        .any(|c| c.is_whitespace() || c.is_control() || !c.is_ascii() || c == '\\' || c == '@')
    {
        return None;
    }
    let cut = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (host, rest) = rest.split_at(cut);
    (!host_name(host).is_empty()).then_some((scheme, host, rest))
}

fn host_name(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    }
}

fn short(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn endpoints_are_https_or_on_the_own_machine() {
        for good in [
            "https://stdr.blob.core.windows.net",
            "http://127.0.0.1:10000/devstoreaccount1",
            "https://stdr.blob.core.windows.net:443/",
        ] {
            assert!(blob_endpoint(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "stdr",
            "http://stdr.blob.core.windows.net",
            "https://a.example?sig=x",
            "https://user@a.example",
            "https://",
            "ftp://a",
            "http://127.0.0.1.evil.example/x",
        ] {
            assert!(blob_endpoint(bad).is_err(), "{bad}");
        }
        assert_eq!(
            account_of_endpoint("https://stdr.blob.core.windows.net"),
            Some("stdr")
        );
        assert_eq!(
            account_of_endpoint("http://127.0.0.1:10000/devstoreaccount1"),
            Some("devstoreaccount1")
        );
    }

    #[test]
    fn a_broken_rule_never_tells_a_key() {
        let broken = account_key("secret!").expect_err("no key");
        assert!(!broken.message.contains("secret") && !broken.advice.contains("secret"));
        assert!(account_key(&format!("{}==", "A".repeat(86))).is_ok());
    }

    #[test]
    fn proxies_and_authorities_hold_no_passwords() {
        assert!(proxy_url("http://proxy:3128").is_ok());
        assert!(proxy_url("http://me:secret@proxy:3128").is_err());
        assert!(authority(DEFAULT_AUTHORITY).is_ok());
        assert!(authority("http://login.example").is_err());
    }

    proptest! {
        #[test]
        fn every_vault_has_a_container_of_its_own(vault in "[A-Za-z][A-Za-z0-9-]{1,49}", digest in "[0-9a-f]{8}") {
            let name = default_container(&format!("{vault}-{digest}"));
            prop_assert!(container_name(&name).is_ok(), "{}", name);
            prop_assert!(name.ends_with(&digest));
        }

        #[test]
        fn hostile_addresses_never_panic(text in ".{0,30}") {
            let _ = blob_endpoint(&text);
            let _ = account_of_endpoint(&text);
            let _ = proxy_url(&text);
            let _ = container_name(&text);
        }
    }
}
