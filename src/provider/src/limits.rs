//! Blocks that several resources share: rate limits and hours of the week.

use arm_model::window::Throttle;
use arm_model::window::{self, TimeWindow};
use serde_json::{Value as Json, json};
use tf_provider::schema::Block;
use tf_provider::{Attribute, AttributePath, Diagnostics, NestedBlock, Object, Type, Value};

use crate::fields;

const MEGABITS: &str = "bandwidth_in_megabits_per_second";
const BYTES: &str = "bytes_per_second";
/// Bytes of a megabit.
const BYTES_PER_MEGABIT: u64 = 125_000;

/// `throttle` blocks.
pub(crate) fn throttle_blocks(of_what: &str) -> NestedBlock {
    let rate = |text: &str| Attribute::number().optional().describe(text);
    let block = Block::new()
        .describe(format!(
            "A rate limit of {of_what}; it takes effect at once. The smallest limit that applies now counts; without days and times it always does."
        ))
        .attribute(
            MEGABITS,
            rate("Megabits a second; 0 pauses. Give this or `bytes_per_second`.").whole_in(0..=10_000_000),
        )
        .attribute(
            BYTES,
            rate("Bytes a second; 0 pauses.").whole_in(0..=i64::MAX),
        );
    NestedBlock::list(with_window(block))
}

/// `comparison_window` blocks.
pub(crate) fn window_blocks(text: &str) -> NestedBlock {
    NestedBlock::list(with_window(Block::new().describe(text)))
}

fn with_window(block: Block) -> Block {
    let text = |check: fn(&str) -> Result<(), arm_model::validate::Violation>, words: &str| {
        fields::checked(Attribute::string().optional(), check).describe(words)
    };
    block
        .attribute(
            "days",
            Attribute::list(Type::String)
                .optional()
                .check(|value| {
                    let days = value.as_elements().unwrap_or_default();
                    if days.is_empty() {
                        return Err("must name a day, or be left out for every day".to_owned());
                    }
                    let wrong = days
                        .iter()
                        .filter_map(Value::as_str)
                        .find_map(|day| window::number_of(day).err());
                    wrong.map_or(Ok(()), |broken| Err(fields::refused(&broken)))
                })
                .describe("Days, `Monday` to `Sunday`. Default: every day."),
        )
        .attribute(
            "start_time",
            text(
                |time| window::minute_of_day(time).map(|_| ()),
                "Begin, `hh:mm`. Default: `00:00`.",
            ),
        )
        .attribute(
            "end_time",
            text(
                |time| window::minute_of_day(time).map(|_| ()),
                "End, `hh:mm`; at or before the begin it lies on the next day. Default: `00:00`.",
            ),
        )
        .attribute(
            "utc_offset",
            text(
                |zone| window::utc_offset(zone).map(|_| ()),
                "Time zone of the times, such as `+01:00`. Default: UTC.",
            ),
        )
}

/// Checks of `throttle` blocks against themselves.
pub(crate) fn check_throttles(config: &Object, report: &mut Diagnostics) {
    for (index, throttle) in config.objects("throttle").iter().enumerate() {
        let path = || AttributePath::root().attribute("throttle").index(index);
        if throttle.is_null(MEGABITS) && throttle.is_null(BYTES) {
            report.push_error(
                path(),
                "A throttle without a rate",
                format!("Give {MEGABITS} or {BYTES}."),
            );
        }
        if !throttle.is_null(MEGABITS) && !throttle.is_null(BYTES) {
            report.push_error(
                path().attribute(BYTES),
                "Two rates",
                format!("Give {MEGABITS} or {BYTES}, not both."),
            );
        }
    }
}

/// `throttles` of a request.
pub(crate) fn throttles_of(object: &Object) -> Json {
    let throttle = |throttle: &&Object| {
        let rate = throttle.u64(BYTES).or_else(|| {
            throttle
                .u64(MEGABITS)
                .map(|megabits| megabits.saturating_mul(BYTES_PER_MEGABIT))
        });
        let mut body = window_of(throttle);
        body["bytesPerSecond"] = json!(rate);
        body
    };
    Json::Array(object.objects("throttle").iter().map(throttle).collect())
}

/// `comparison_window` blocks of a request.
pub(crate) fn windows_of(object: &Object, block: &str) -> Json {
    Json::Array(
        object
            .objects(block)
            .iter()
            .map(|window| window_of(window))
            .collect(),
    )
}

fn window_of(object: &Object) -> Json {
    let mut body = json!({});
    let days = object.strings("days");
    if !days.is_empty() {
        body["days"] = json!(days);
    }
    for (property, attribute) in [
        ("startTime", "start_time"),
        ("endTime", "end_time"),
        ("utcOffset", "utc_offset"),
    ] {
        if let Some(text) = object.str(attribute) {
            body[property] = json!(text);
        }
    }
    body
}

/// `throttle` blocks of an answer, in the unit that the state has at their place.
pub(crate) fn set_throttles(throttles: &[Throttle], object: &mut Object) {
    let before: Vec<bool> = object
        .objects("throttle")
        .iter()
        .map(|throttle| !throttle.is_null(BYTES))
        .collect();
    let blocks: Vec<Object> = throttles
        .iter()
        .enumerate()
        .map(|(index, throttle)| {
            let rate = throttle.bytes_per_second.unwrap_or_default();
            let in_bytes =
                before.get(index).copied().unwrap_or_default() || rate % BYTES_PER_MEGABIT != 0;
            let (megabits, bytes) = if in_bytes {
                (Value::Null, Value::from(rate))
            } else {
                (Value::from(rate / BYTES_PER_MEGABIT), Value::Null)
            };
            window_object(&throttle.window)
                .with(MEGABITS, megabits)
                .with(BYTES, bytes)
        })
        .collect();
    object.set("throttle", Value::list(blocks));
}

/// Window blocks of an answer.
pub(crate) fn set_windows(windows: &[TimeWindow], block: &str, object: &mut Object) {
    object.set(block, Value::list(windows.iter().map(window_object)));
}

fn window_object(window: &TimeWindow) -> Object {
    let days = if window.days.is_empty() {
        Value::Null
    } else {
        Value::list(window.days.iter().map(String::as_str))
    };
    Object::new()
        .with("days", days)
        .with("start_time", window.start_time.as_deref())
        .with("end_time", window.end_time.as_deref())
        .with("utc_offset", window.utc_offset.as_deref())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn throttle(rate: &str, number: u64) -> Object {
        Object::new()
            .with(rate, number)
            .with("days", Value::list(["Monday"]))
            .with("start_time", "08:00")
    }

    #[test]
    fn a_throttle_read_back_is_the_one_that_was_sent_in_its_unit() {
        let planned = Object::new().with(
            "throttle",
            Value::list([
                throttle(MEGABITS, 50),
                throttle(BYTES, 1_000_000),
                throttle(BYTES, 3),
            ]),
        );
        let sent: Vec<Throttle> = serde_json::from_value(throttles_of(&planned)).unwrap();
        assert_eq!(sent[0].bytes_per_second, Some(6_250_000));
        let mut read = planned.clone();
        set_throttles(&sent, &mut read);
        for (index, block) in read.objects("throttle").iter().enumerate() {
            let own = planned.objects("throttle")[index];
            for name in [MEGABITS, BYTES, "days", "start_time", "end_time"] {
                assert_eq!(block.get(name), own.get(name), "{index} {name}");
            }
        }
    }

    #[test]
    fn a_throttle_has_exactly_one_rate() {
        let both = throttle(BYTES, 1).with(MEGABITS, 1);
        let none = Object::new().with("start_time", "08:00");
        let config = Object::new().with("throttle", Value::list([both, none]));
        let mut report = Diagnostics::new();
        check_throttles(&config, &mut report);
        let paths: Vec<String> = report.iter().map(|d| d.attribute.to_string()).collect();
        assert_eq!(paths.len(), 2, "{paths:?}");
    }
}
