//! The `timeouts` argument that every resource has: `timeouts = { create = "90m" }`.

use std::time::Duration;

use tf_provider::{Attribute, Nesting, Object};

/// What an operation is allowed when the user says nothing.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Defaults {
    pub(crate) create: Duration,
    pub(crate) read: Duration,
    pub(crate) update: Duration,
    pub(crate) delete: Duration,
}

const fn minutes(minutes: u64) -> Duration {
    Duration::from_secs(minutes * 60)
}

/// Enough for anything that copies no data.
pub(crate) const QUICK: Defaults = Defaults {
    create: minutes(30),
    read: minutes(5),
    update: minutes(30),
    delete: minutes(30),
};
/// A first copy may take a day.
pub(crate) const COPYING: Defaults = Defaults {
    create: minutes(24 * 60),
    read: minutes(5),
    update: minutes(24 * 60),
    delete: minutes(60),
};

/// The argument, with the defaults in its documentation.
pub(crate) fn attribute(defaults: Defaults) -> Attribute {
    let entry = |what: &str, limit: Duration| {
        let text = format!(
            "Time allowed to {what}, such as `90m`. Default: `{}`.",
            show(limit)
        );
        let name = what.split(' ').next().unwrap_or_default().to_owned();
        let attribute = Attribute::string()
            .optional()
            .describe(text)
            .check(|value| match value.as_str().and_then(parse) {
                Some(_) => Ok(()),
                None => Err("must be a duration such as 30s, 90m or 1h30m".to_owned()),
            });
        (name, attribute)
    };
    Attribute::nested(
        Nesting::Single,
        [
            entry("create", defaults.create),
            entry("read", defaults.read),
            entry("update", defaults.update),
            entry("delete", defaults.delete),
        ],
    )
    .optional()
    .describe("Time allowed for each operation, as durations with `h`, `m` and `s`.")
}

/// The time allowed for an operation of an object.
pub(crate) fn of(object: &Object, operation: &str, default: Duration) -> Duration {
    let chosen = object
        .object("timeouts")
        .and_then(|timeouts| timeouts.str(operation))
        .and_then(parse);
    chosen.unwrap_or(default)
}

/// Reads `1h30m`, `90m`, `30s`, `1.5h`.
pub(crate) fn parse(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    if rest.is_empty() {
        return None;
    }
    let mut total = 0.0_f64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !(c.is_ascii_digit() || c == '.'))?;
        let number: f64 = rest[..digits].parse().ok()?;
        let unit = &rest[digits..];
        let (factor, length) = if unit.starts_with("ms") {
            (0.001, 2)
        } else {
            match unit.chars().next()? {
                'h' => (3600.0, 1),
                'm' => (60.0, 1),
                's' => (1.0, 1),
                _ => return None,
            }
        };
        total += number * factor;
        rest = &unit[length..];
    }
    // A month is more than anybody waits and keeps clocks from overflowing.
    (total > 0.0 && total <= 31.0 * 86_400.0).then(|| Duration::from_secs_f64(total))
}

fn show(limit: Duration) -> String {
    match limit.as_secs() / 60 {
        m if m % 60 == 0 => format!("{}h", m / 60),
        m => format!("{m}m"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_are_read_as_terraform_users_write_them() {
        assert_eq!(parse("90m"), Some(Duration::from_secs(5400)));
        assert_eq!(parse("1h30m"), Some(Duration::from_secs(5400)));
        assert_eq!(parse("1.5h"), Some(Duration::from_secs(5400)));
        assert_eq!(parse("250ms"), Some(Duration::from_millis(250)));
        for wrong in [
            "", "90", "m", "1d", "-5m", "1h 30m", "0s", "99999h", "1..5h",
        ] {
            assert_eq!(parse(wrong), None, "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in ".*") {
            let _ = parse(&text);
        }

        #[test]
        fn seconds_come_back(seconds in 1_u64..1_000_000) {
            prop_assert_eq!(parse(&format!("{seconds}s")), Some(Duration::from_secs(seconds)));
        }
    }
}
