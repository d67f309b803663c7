//! Who may do what: signatures are computed anew and compared, tokens are looked up, both end when their time is over.

use std::collections::HashMap;

use crate::sas::{self, AccountKey};

/// Why a call is refused.
pub(super) struct Refusal {
    pub(super) status: u16,
    pub(super) code: &'static str,
}

const FAILED: Refusal = Refusal {
    status: 403,
    code: "AuthenticationFailed",
};
const NOT_ALLOWED: Refusal = Refusal {
    status: 403,
    code: "AuthorizationPermissionMismatch",
};

/// What a call needs: one of these letters, for a blob or for a container as such.
#[derive(Clone, Copy)]
pub(super) struct Needed {
    pub(super) any_of: &'static str,
    /// Creating containers is beyond a container's own signature.
    pub(super) account: bool,
}

pub(super) struct Presented<'a> {
    pub(super) query: &'a HashMap<String, String>,
    pub(super) authorization: Option<&'a str>,
    pub(super) container: &'a str,
    pub(super) https: bool,
}

/// Checks what was presented.
pub(super) fn check(
    presented: &Presented<'_>,
    needed: Needed,
    key: &AccountKey,
    tokens: &HashMap<String, i64>,
    now_unix_ms: i64,
) -> Result<(), Refusal> {
    if let Some(token) = presented
        .authorization
        .and_then(|value| value.strip_prefix("Bearer "))
    {
        return match tokens.get(token) {
            Some(until) if *until > now_unix_ms => Ok(()),
            _ => Err(Refusal {
                status: 401,
                code: "InvalidAuthenticationInfo",
            }),
        };
    }
    let field = |name: &str| presented.query.get(name).map_or("", String::as_str);
    if field("sig").is_empty() {
        return Err(Refusal {
            status: 401,
            code: "NoAuthenticationInformation",
        });
    }
    let account = !field("ss").is_empty();
    let text = if account {
        [
            key.account(),
            field("sp"),
            field("ss"),
            field("srt"),
            field("st"),
            field("se"),
            field("sip"),
            field("spr"),
            field("sv"),
            field("ses"),
            "",
        ]
        .join("\n")
    } else {
        sas::service_string_to_sign(
            &sas::SignedFields {
                permissions: field("sp"),
                start: field("st"),
                expiry: field("se"),
                protocols: field("spr"),
                version: field("sv"),
                resource: field("sr"),
            },
            &sas::canonicalized(key.account(), presented.container),
        )
    };
    if key.sign(&text) != field("sig") {
        return Err(FAILED);
    }
    // The fixed form sorts as time does.
    let now = sas::iso8601(now_unix_ms);
    if field("se") <= now.as_str() || field("st") > now.as_str() {
        return Err(FAILED);
    }
    if !presented.https && !field("spr").contains("http,") && !field("spr").ends_with(",http") {
        return Err(Refusal {
            status: 403,
            code: "AuthorizationProtocolMismatch",
        });
    }
    if needed.account && !account {
        return Err(NOT_ALLOWED);
    }
    if !field("sp")
        .chars()
        .any(|letter| needed.any_of.contains(letter))
    {
        return Err(NOT_ALLOWED);
    }
    Ok(())
}
