//! A VM's life as it is kept; records of earlier releases have the part of it that is at the source.

use protection::{Item, Life};
use serde::{Deserialize, Deserializer};

#[derive(Deserialize)]
#[serde(untagged)]
enum Kept {
    Life(Life),
    Item(Item),
}

/// Reads either.
pub fn read<'de, D: Deserializer<'de>>(from: D) -> Result<Life, D::Error> {
    Ok(match Kept::deserialize(from)? {
        Kept::Life(life) => life,
        Kept::Item(item) => Life::of(item),
    })
}

#[cfg(test)]
mod tests {
    use protection::{Event, Generation, Item, Life, Observed, step};
    use serde::Deserialize;
    use serde_json::json;

    #[derive(Deserialize)]
    struct Record {
        #[serde(alias = "machine", deserialize_with = "super::read")]
        life: Life,
    }

    #[test]
    fn a_record_of_an_earlier_release_is_a_life_at_the_source() {
        let item = Item {
            copied_once: true,
            ..Item::new(Generation(7))
        };
        let record: Record = serde_json::from_value(json!({ "machine": item })).expect("read");
        assert_eq!(record.life, Life::of(item));
    }

    #[test]
    fn a_life_is_read_as_it_was_written() {
        let report = Event::Report {
            generation: Generation(7),
            observed: Observed::Protected,
        };
        let (life, _) = step(Life::new(Generation(7)), report).expect("a report");
        let record: Record = serde_json::from_value(json!({ "life": life })).expect("read");
        assert_eq!(record.life, life);
    }
}
