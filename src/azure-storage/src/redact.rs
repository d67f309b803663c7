//! Keeps signatures and tokens out of whatever a person or a log may see.

/// Query parameters whose values are secret.
const SECRET: &[&str] = &["sig", "signature", "client_secret", "access_token"];

/// The text with the values of secret query parameters replaced. Works on any text that holds URLs, however it is cut.
pub(crate) fn redact(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('=') {
        let (head, tail) = rest.split_at(at + 1);
        out.push_str(head);
        let name_start = head[..at]
            .rfind(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '-'))
            .map_or(0, |before| {
                before + head[before..].chars().next().map_or(1, char::len_utf8)
            });
        let name = &head[name_start..at];
        if SECRET
            .iter()
            .any(|secret| name.eq_ignore_ascii_case(secret))
        {
            let end = tail
                .find(|c: char| c == '&' || c.is_whitespace() || c == '"' || c == ')' || c == '<')
                .unwrap_or(tail.len());
            out.push_str("REDACTED");
            rest = &tail[end..];
        } else {
            rest = tail;
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::redact;

    #[test]
    fn a_signature_never_passes() {
        let url = "error for url (http://h/c/b?sv=2022&sig=ab%2Bc%3D&se=x)";
        assert_eq!(
            redact(url),
            "error for url (http://h/c/b?sv=2022&sig=REDACTED&se=x)"
        );
        assert_eq!(redact("SIG=abc"), "SIG=REDACTED");
        assert_eq!(redact("design=abc"), "design=abc");
    }

    proptest! {
        #[test]
        fn whatever_surrounds_it(before in ".*", after in "[^=]*") {
            let text = format!("{before}&sig=TOPSECRET42&{after}");
            prop_assert!(!redact(&text).contains("TOPSECRET42"));
        }
    }
}
