//! Logs in the form that Terraform sorts and shows: one JSON object for each line on stderr (hclog).
//!
//! Users see them with `TF_LOG` or `TF_LOG_PROVIDER`; without those variables nothing is written, which also saves
//! the work. Fields of spans (`tf_rpc` and what a provider adds) are part of each line inside them.

use std::fmt;
use std::io::Write;

use serde_json::{Map, Value as Json};
use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

/// Exactly six digits of fraction: with another form Terraform takes the line for plain text.
const TIMESTAMP: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z");
/// Terraform does not parse lines over 64 KiB.
const MAX_TEXT_BYTES: usize = 8 << 10;
const MAX_LINE_BYTES: usize = 60 << 10;

/// Sends `tracing` events to Terraform's log, by the level of `TF_LOG_PROVIDER` or else `TF_LOG`. Call it first in
/// `main`; a second call has no effect.
pub fn init() {
    let level = level_from(|name| std::env::var(name).ok());
    // Libraries below us are noise at their debug level, so they only get through at trace.
    let own = move |metadata: &Metadata<'_>| {
        let library = ["h2", "hyper", "tonic", "tower", "rustls"]
            .iter()
            .any(|name| metadata.target().split("::").next() == Some(name));
        !library || level == LevelFilter::TRACE || *metadata.level() <= Level::WARN
    };
    let layer = HclogLayer.with_filter(level).with_filter(filter_fn(own));
    // Only fails when a subscriber is there already: the program's own choice.
    let _ = tracing_subscriber::registry().with(layer).try_init();
}

fn level_from(variable: impl Fn(&str) -> Option<String>) -> LevelFilter {
    let set = |name| variable(name).filter(|text| !text.is_empty());
    let Some(text) = set("TF_LOG_PROVIDER").or_else(|| set("TF_LOG")) else {
        return LevelFilter::OFF;
    };
    match text.to_ascii_uppercase().as_str() {
        "OFF" => LevelFilter::OFF,
        "ERROR" => LevelFilter::ERROR,
        "WARN" => LevelFilter::WARN,
        "INFO" => LevelFilter::INFO,
        "DEBUG" => LevelFilter::DEBUG,
        // `JSON` means everything in another form; unknown words mean everything too, as in Terraform itself.
        _ => LevelFilter::TRACE,
    }
}

/// Writes each event as one hclog line to stderr.
#[derive(Debug, Clone, Copy, Default)]
pub struct HclogLayer;

impl<S> Layer<S> for HclogLayer
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(fields);
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(fields) = span.extensions_mut().get_mut::<Fields>()
        {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        for span in context
            .event_scope(event)
            .into_iter()
            .flat_map(|scope| scope.from_root())
        {
            if let Some(inherited) = span.extensions().get::<Fields>() {
                fields.0.extend(inherited.0.clone());
            }
        }
        event.record(&mut fields);
        let line = line(event.metadata(), fields.0, OffsetDateTime::now_utc());
        let mut stderr = std::io::stderr().lock();
        // A closed stderr means that nobody reads logs any more.
        let _ = stderr.write_all(line.as_bytes());
    }
}

fn line(metadata: &Metadata<'_>, mut fields: Map<String, Json>, now: OffsetDateTime) -> String {
    // The client accepts nothing but a string as message.
    let message = match fields.remove("message") {
        Some(Json::String(text)) => text,
        Some(other) => other.to_string(),
        None => metadata.name().to_owned(),
    };
    let render = |extra: Map<String, Json>| {
        let mut whole = extra;
        let level = metadata.level().as_str().to_ascii_lowercase();
        whole.insert("@level".to_owned(), Json::from(level));
        whole.insert("@message".to_owned(), Json::from(message.clone()));
        whole.insert(
            "@module".to_owned(),
            Json::from(metadata.target().replace("::", ".")),
        );
        whole.insert(
            "@timestamp".to_owned(),
            Json::from(now.format(TIMESTAMP).unwrap_or_default()),
        );
        format!("{}\n", Json::Object(whole))
    };
    let line = render(fields);
    if line.len() <= MAX_LINE_BYTES {
        line
    } else {
        render(Map::new())
    }
}

/// Fields of an event or span.
#[derive(Default)]
struct Fields(Map<String, Json>);

impl Fields {
    fn put(&mut self, field: &Field, value: impl Into<Json>) {
        self.0.insert(field.name().to_owned(), value.into());
    }

    fn text(&mut self, field: &Field, mut text: String) {
        if text.len() > MAX_TEXT_BYTES {
            let end = (0..=MAX_TEXT_BYTES)
                .rev()
                .find(|end| text.is_char_boundary(*end))
                .unwrap_or(0);
            text.truncate(end);
            text.push('…');
        }
        self.put(field, text);
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.text(field, format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.text(field, value.to_owned());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_provider_level_wins_over_the_general_one() {
        let variables = |name: &str| match name {
            "TF_LOG_PROVIDER" => Some("warn".to_owned()),
            "TF_LOG" => Some("TRACE".to_owned()),
            _ => None,
        };
        assert_eq!(level_from(variables), LevelFilter::WARN);
        assert_eq!(level_from(|_| None), LevelFilter::OFF);
        assert_eq!(level_from(|_| Some("JSON".to_owned())), LevelFilter::TRACE);
    }

    #[test]
    fn timestamps_have_six_digits_of_fraction() {
        let text = OffsetDateTime::UNIX_EPOCH
            .format(TIMESTAMP)
            .expect("the format has no runtime parts");
        assert_eq!(text, "1970-01-01T00:00:00.000000Z");
    }
}
