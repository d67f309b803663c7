//! Makes shared access signatures: short-lived, of one container, with the rights that are needed and no more.
//!
//! The string that is signed is the one of service version 2020-12-06 and later (fields in order, one a line). Three
//! sorts: a *service* signature over one container with the account key; a *user delegation* signature over one
//! container with a key that Entra lent; an *account* signature, which alone may create containers.
//!
//! What may go wrong: an account key that is no base64 ([`ErrorKind::Invalid`]).

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;
use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

use crate::error::{Error, ErrorKind, Result};

/// Service version that signatures are made for. Emulators and every region know it.
pub const VERSION: &str = "2022-11-02";

/// How far a signature's start lies in the past, since clocks differ.
pub const START_SKEW_MS: i64 = 15 * 60 * 1000;

const TIME: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]Z");

/// Key of a storage account. Not shown by `Debug`.
#[derive(Clone)]
pub struct AccountKey {
    account: String,
    key: Vec<u8>,
}

impl AccountKey {
    /// From the account's name and its key in base64, as the portal shows it.
    pub fn new(account: impl Into<String>, base64_key: &str) -> Result<Self> {
        let account = account.into();
        let key = STANDARD.decode(base64_key.trim()).map_err(|_| {
            Error::new(
                ErrorKind::Invalid,
                format!("the key of storage account `{account}` is no base64: copy it again"),
            )
        })?;
        Ok(AccountKey { account, key })
    }

    /// The account's name.
    pub fn account(&self) -> &str {
        &self.account
    }

    pub(crate) fn sign(&self, text: &str) -> String {
        sign(&self.key, text)
    }
}

impl fmt::Debug for AccountKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccountKey")
            .field("account", &self.account)
            .finish_non_exhaustive()
    }
}

/// Rights over a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permissions {
    /// Read blobs and their properties.
    pub read: bool,
    /// Create blobs and snapshots.
    pub create: bool,
    /// Change blobs; leases.
    pub write: bool,
    /// Remove blobs.
    pub delete: bool,
    /// List blobs.
    pub list: bool,
}

impl Permissions {
    /// What replication needs.
    pub const REPLICATE: Permissions = Permissions {
        read: true,
        create: true,
        write: true,
        delete: true,
        list: true,
    };
    /// What recovery from a point needs, and no more.
    pub const RECOVER: Permissions = Permissions {
        read: true,
        create: false,
        write: false,
        delete: false,
        list: true,
    };

    fn letters(self) -> String {
        // The service wants them in this order.
        [
            (self.read, 'r'),
            (self.create, 'c'),
            (self.write, 'w'),
            (self.delete, 'd'),
            (self.list, 'l'),
        ]
        .into_iter()
        .filter_map(|(given, letter)| given.then_some(letter))
        .collect()
    }
}

/// Which protocols a signature is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocols {
    /// The rule.
    HttpsOnly,
    /// For emulators without TLS.
    HttpsAndHttp,
}

impl Protocols {
    /// Only TLS, unless the endpoint has none.
    pub fn of_endpoint(endpoint: &str) -> Self {
        if endpoint.starts_with("http://") {
            Protocols::HttpsAndHttp
        } else {
            Protocols::HttpsOnly
        }
    }

    fn text(self) -> &'static str {
        match self {
            Protocols::HttpsOnly => "https",
            Protocols::HttpsAndHttp => "https,http",
        }
    }
}

/// What a signature shall allow.
#[derive(Clone, Debug)]
pub struct SasRequest {
    /// The container.
    pub container: String,
    /// Rights over it.
    pub permissions: Permissions,
    /// Protocols.
    pub protocols: Protocols,
    /// Now.
    pub now_unix_ms: i64,
    /// How long from now.
    pub lifetime_ms: i64,
}

/// A signature: the query string, and when it ends. Not shown by `Debug`.
#[derive(Clone)]
pub struct Sas {
    /// Query string without `?`.
    pub query: String,
    /// When it ends.
    pub expires_unix_ms: i64,
}

impl fmt::Debug for Sas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sas")
            .field("expires_unix_ms", &self.expires_unix_ms)
            .finish_non_exhaustive()
    }
}

impl Sas {
    /// As a credential.
    pub fn credential(&self) -> crate::Credential {
        crate::Credential::sas(self.query.clone(), self.expires_unix_ms)
    }
}

/// A service signature over one container.
pub fn mint(key: &AccountKey, request: &SasRequest) -> Sas {
    let (start, expiry, expires_unix_ms) = window(request.now_unix_ms, request.lifetime_ms);
    let fields = SignedFields {
        permissions: &request.permissions.letters(),
        start: &start,
        expiry: &expiry,
        protocols: request.protocols.text(),
        version: VERSION,
        resource: "c",
    };
    let signature = key.sign(&service_string_to_sign(
        &fields,
        &canonicalized(key.account(), &request.container),
    ));
    Sas {
        query: query(&fields, &[], &signature),
        expires_unix_ms,
    }
}

/// A key that Entra lent for a while (operation Get User Delegation Key). Not shown by `Debug`.
#[derive(Clone)]
pub struct UserDelegationKey {
    /// Object id of the principal.
    pub signed_oid: String,
    /// Its tenant.
    pub signed_tid: String,
    /// Start, as the service wrote it.
    pub signed_start: String,
    /// End, as the service wrote it.
    pub signed_expiry: String,
    /// Service, `b`.
    pub signed_service: String,
    /// Version of the key.
    pub signed_version: String,
    /// The key in base64.
    pub value: String,
}

impl fmt::Debug for UserDelegationKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UserDelegationKey")
            .field("signed_expiry", &self.signed_expiry)
            .finish_non_exhaustive()
    }
}

/// A user delegation signature over one container: no account key is involved.
pub fn mint_user_delegation(
    account: &str,
    key: &UserDelegationKey,
    request: &SasRequest,
) -> Result<Sas> {
    let secret = STANDARD
        .decode(&key.value)
        .map_err(|_| Error::new(ErrorKind::Invalid, "the user delegation key is no base64"))?;
    let (start, expiry, expires_unix_ms) = window(request.now_unix_ms, request.lifetime_ms);
    let fields = SignedFields {
        permissions: &request.permissions.letters(),
        start: &start,
        expiry: &expiry,
        protocols: request.protocols.text(),
        version: VERSION,
        resource: "c",
    };
    let text = [
        fields.permissions,
        fields.start,
        fields.expiry,
        &canonicalized(account, &request.container),
        &key.signed_oid,
        &key.signed_tid,
        &key.signed_start,
        &key.signed_expiry,
        &key.signed_service,
        &key.signed_version,
        "", // authorized user
        "", // unauthorized user
        "", // correlation id
        "", // addresses
        fields.protocols,
        fields.version,
        fields.resource,
        "", // snapshot time
        "", // encryption scope
        "", // cache control
        "", // content disposition
        "", // content encoding
        "", // content language
        "", // content type
    ]
    .join("\n");
    let signature = sign(&secret, &text);
    let delegation = [
        ("skoid", key.signed_oid.as_str()),
        ("sktid", &key.signed_tid),
        ("skt", &key.signed_start),
        ("ske", &key.signed_expiry),
        ("sks", &key.signed_service),
        ("skv", &key.signed_version),
    ];
    Ok(Sas {
        query: query(&fields, &delegation, &signature),
        expires_unix_ms,
    })
}

/// An account signature for containers as such: to create and list them. For the orchestrator's own use.
pub fn mint_account(
    key: &AccountKey,
    protocols: Protocols,
    now_unix_ms: i64,
    lifetime_ms: i64,
) -> Sas {
    let (start, expiry, expires_unix_ms) = window(now_unix_ms, lifetime_ms);
    let (permissions, services, types) = ("rwdlc", "b", "sco");
    // One more line than there are fields: the encryption scope, and the end.
    let text = [
        key.account(),
        permissions,
        services,
        types,
        &start,
        &expiry,
        "",
        protocols.text(),
        VERSION,
        "",
        "",
    ]
    .join("\n");
    let signature = key.sign(&text);
    let pairs = [
        ("sv", VERSION),
        ("ss", services),
        ("srt", types),
        ("sp", permissions),
        ("st", &start),
        ("se", &expiry),
        ("spr", protocols.text()),
        ("sig", &signature),
    ];
    Sas {
        query: encode_pairs(&pairs),
        expires_unix_ms,
    }
}

/// Fields that are both in the query and under the signature.
pub(crate) struct SignedFields<'a> {
    pub(crate) permissions: &'a str,
    pub(crate) start: &'a str,
    pub(crate) expiry: &'a str,
    pub(crate) protocols: &'a str,
    pub(crate) version: &'a str,
    pub(crate) resource: &'a str,
}

/// What a service signature signs.
pub(crate) fn service_string_to_sign(fields: &SignedFields<'_>, canonicalized: &str) -> String {
    [
        fields.permissions,
        fields.start,
        fields.expiry,
        canonicalized,
        "", // stored access policy
        "", // addresses
        fields.protocols,
        fields.version,
        fields.resource,
        "", // snapshot time
        "", // encryption scope
        "", // cache control
        "", // content disposition
        "", // content encoding
        "", // content language
        "", // content type
    ]
    .join("\n")
}

pub(crate) fn canonicalized(account: &str, container: &str) -> String {
    format!("/blob/{account}/{container}")
}

pub(crate) fn sign(key: &[u8], text: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    STANDARD.encode(hmac::sign(&key, text.as_bytes()))
}

fn query(fields: &SignedFields<'_>, more: &[(&str, &str)], signature: &str) -> String {
    let mut pairs = vec![
        ("sv", fields.version),
        ("sr", fields.resource),
        ("sp", fields.permissions),
        ("st", fields.start),
        ("se", fields.expiry),
        ("spr", fields.protocols),
    ];
    pairs.extend_from_slice(more);
    pairs.push(("sig", signature));
    encode_pairs(&pairs)
}

pub(crate) fn encode_pairs(pairs: &[(&str, &str)]) -> String {
    let mut out = String::new();
    for (name, value) in pairs {
        if !out.is_empty() {
            out.push('&');
        }
        out.push_str(name);
        out.push('=');
        for byte in value.bytes() {
            if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
                out.push(char::from(byte));
            } else {
                out.push_str(&format!("%{byte:02X}"));
            }
        }
    }
    out
}

/// Start, expiry as text, and the expiry in whole seconds, as the text has it.
fn window(now_unix_ms: i64, lifetime_ms: i64) -> (String, String, i64) {
    let expires = now_unix_ms.saturating_add(lifetime_ms) / 1000 * 1000;
    (
        iso8601(now_unix_ms.saturating_sub(START_SKEW_MS)),
        iso8601(expires),
        expires,
    )
}

pub(crate) fn iso8601(unix_ms: i64) -> String {
    OffsetDateTime::from_unix_timestamp(unix_ms.div_euclid(1000))
        .unwrap_or(OffsetDateTime::UNIX_EPOCH)
        .format(TIME)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> SasRequest {
        SasRequest {
            container: "replicas".to_owned(),
            permissions: Permissions::REPLICATE,
            protocols: Protocols::of_endpoint("https://a.blob.core.windows.net"),
            now_unix_ms: 1_764_039_600_123,
            lifetime_ms: 3_600_000,
        }
    }

    #[test]
    fn the_query_says_what_is_allowed_and_until_when() {
        let key = AccountKey::new("acct", "a2V5").expect("base64");
        let sas = mint(&key, &request());
        assert!(
            sas.query.starts_with(
                "sv=2022-11-02&sr=c&sp=rcwdl&st=2025-11-25T02%3A45%3A00Z&se=2025-11-25T04%3A00%3A00Z&spr=https&sig="
            ),
            "{}",
            sas.query
        );
        assert_eq!(sas.expires_unix_ms, 1_764_043_200_000);
    }

    #[test]
    fn a_reader_gets_no_right_to_change() {
        assert_eq!(Permissions::RECOVER.letters(), "rl");
    }

    #[test]
    fn http_is_allowed_only_where_the_endpoint_has_no_tls() {
        assert_eq!(
            Protocols::of_endpoint("http://127.0.0.1:1/a").text(),
            "https,http"
        );
        assert_eq!(Protocols::of_endpoint("https://x").text(), "https");
    }

    #[test]
    fn no_debug_shows_a_secret() {
        let key = AccountKey::new("acct", "VE9QU0VDUkVU").expect("base64");
        let sas = mint(&key, &request());
        let text = format!("{key:?} {sas:?} {:?}", sas.credential());
        assert!(!text.contains("sig="), "{text}");
        assert!(
            !text.contains("VE9Q") && !text.contains("TOPSECRET"),
            "{text}"
        );
    }

    #[test]
    fn a_bad_key_is_refused_without_being_shown() {
        let error = AccountKey::new("acct", "not base64!").expect_err("refused");
        assert!(!error.to_string().contains("not base64!"), "{error}");
    }
}
