//! `$filter`: `Name eq 'value'` joined by `and`, several values as `( Name eq 'a' or Name eq 'b' )`.
//! Names count without regard to case; unknown names are ignored, as the service does.

use std::collections::BTreeMap;

use crate::fault::Fault;

/// Values by lower-case name; several values mean any of them.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Filter(BTreeMap<String, Vec<String>>);

// === impl Filter ===

impl Filter {
    /// Reads a filter.
    ///
    /// # Errors
    /// 400 when the text has another form.
    pub fn parse(text: &str) -> Result<Self, Fault> {
        let mut values: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut rest = text.trim();
        while !rest.is_empty() {
            rest = rest.trim_start_matches(['(', ')', ' ']);
            if rest.is_empty() {
                break;
            }
            for word in ["and ", "or "] {
                if rest
                    .get(..word.len())
                    .is_some_and(|start| start.eq_ignore_ascii_case(word))
                {
                    rest = rest
                        .get(word.len()..)
                        .unwrap_or_default()
                        .trim_start_matches(['(', ' ']);
                }
            }
            let wrong = || {
                Fault::invalid(
                    "$filter",
                    format!(
                        "The filter can't be read at `{}`.",
                        rest.chars().take(60).collect::<String>()
                    ),
                )
            };
            let (name, after) = rest.split_once(' ').ok_or_else(wrong)?;
            let after = after.trim_start();
            let after = after
                .get(..3)
                .filter(|word| word.eq_ignore_ascii_case("eq "))
                .and_then(|_| after.get(3..))
                .ok_or_else(wrong)?;
            let quoted = after.trim_start().strip_prefix('\'').ok_or_else(wrong)?;
            let (value, after) = quoted.split_once('\'').ok_or_else(wrong)?;
            values
                .entry(name.to_ascii_lowercase())
                .or_default()
                .push(value.to_owned());
            rest = after.trim_start();
        }
        Ok(Self(values))
    }

    /// Whether a value passes; a name that the filter doesn't mention always does.
    #[must_use]
    pub fn allows(&self, name: &str, value: &str) -> bool {
        self.0.get(&name.to_ascii_lowercase()).is_none_or(|values| {
            values
                .iter()
                .any(|wanted| wanted.eq_ignore_ascii_case(value))
        })
    }

    /// The first value of a name.
    #[must_use]
    pub fn first(&self, name: &str) -> Option<&str> {
        self.0
            .get(&name.to_ascii_lowercase())?
            .first()
            .map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn single_and_alternative_values_are_read() {
        let filter =
            Filter::parse("JobStatus eq 'Failed' and ( jobName eq 'a' or jobName eq 'b c' )")
                .expect("filter");
        assert!(filter.allows("jobstatus", "failed") && !filter.allows("JobStatus", "Succeeded"));
        assert!(filter.allows("jobName", "b c") && !filter.allows("jobName", "d"));
        assert!(filter.allows("other", "anything"));
        assert!(Filter::parse("state").is_err() && Filter::parse("state eq x").is_err());
        assert_eq!(Filter::parse("").expect("empty"), Filter::default());
    }

    proptest! {
        #[test]
        fn hostile_text_never_panics_or_hangs(text in ".{0,80}") {
            let _ = Filter::parse(&text);
            let _ = Filter::parse(&format!("( a eq 'b' {text}"));
        }
    }
}
