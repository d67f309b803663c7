//! What a comparison found: ours, the peer, and the ratio that its promise bounds.

use serde::Serialize;
use serde_json::{Value, json};

/// What a ratio (or a figure of ours) must keep.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    /// Not above.
    AtMost(f64),
    /// Not below.
    AtLeast(f64),
    /// Reported, and wished not to be above; no promise.
    Aim(f64),
    /// Only reported.
    Reported,
}

/// One pair of figures.
#[derive(Clone, Debug)]
pub struct Measure {
    /// What was measured.
    pub what: String,
    /// Ours.
    pub ours: f64,
    /// The peer's.
    pub peer: f64,
    /// Of both.
    pub unit: &'static str,
    /// The bounded quantity.
    pub ratio: f64,
    /// Its bound.
    pub bound: Bound,
}

/// One comparison.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Name on the command line.
    pub name: &'static str,
    /// Input and peer.
    pub what: String,
    /// The first one is the comparison's own; further ones belong to it.
    pub measures: Vec<Measure>,
    /// What the machine itself can do, in the unit of the first measure, and how that was measured.
    pub ceiling: Option<(f64, &'static str)>,
    /// What a reader must know.
    pub notes: Vec<String>,
}

impl Bound {
    fn holds(self, ratio: f64) -> bool {
        match self {
            Self::AtMost(bound) => ratio <= bound,
            Self::AtLeast(bound) => ratio >= bound,
            Self::Aim(_) | Self::Reported => true,
        }
    }

    fn text(self) -> String {
        match self {
            Self::AtMost(bound) => format!("at most {bound}"),
            Self::AtLeast(bound) => format!("at least {bound}"),
            Self::Aim(bound) => format!("reported; aim at most {bound}"),
            Self::Reported => "reported".to_owned(),
        }
    }
}

impl Measure {
    /// `ratio` = ours / peer.
    pub fn new(what: impl Into<String>, ours: f64, peer: f64, unit: &'static str) -> Self {
        Self {
            what: what.into(),
            ours,
            peer,
            unit,
            ratio: ours / peer,
            bound: Bound::Reported,
        }
    }

    /// With a bound on the ratio.
    #[must_use]
    pub fn bound(mut self, bound: Bound) -> Self {
        self.bound = bound;
        self
    }

    /// `ratio` = peer / ours: how many times faster.
    #[must_use]
    pub fn speed_up(mut self) -> Self {
        self.ratio = self.peer / self.ours;
        self
    }

    /// Another quantity is bounded.
    #[must_use]
    pub fn ratio(mut self, ratio: f64) -> Self {
        self.ratio = ratio;
        self
    }

    fn json(&self) -> Value {
        json!({
            "what": self.what,
            "ours": round(self.ours),
            "peer": round(self.peer),
            "unit": self.unit,
            "ratio": round(self.ratio),
            "bound": self.bound.text(),
            "met": self.bound.holds(self.ratio),
        })
    }
}

impl Outcome {
    /// Whether every bound holds.
    pub fn is_met(&self) -> bool {
        self.measures
            .iter()
            .all(|measure| measure.bound.holds(measure.ratio))
    }

    /// One line of JSON: the first measure's figures at the top, the others under `further`.
    pub fn json(&self) -> Value {
        let mut value = self
            .measures
            .first()
            .map_or_else(|| json!({}), Measure::json);
        value["measured"] = value["what"].take();
        value["name"] = json!(self.name);
        value["what"] = json!(self.what);
        value["ceiling"] = json!(self.ceiling.map(|(ceiling, _)| round(ceiling)));
        value["ceilingWhat"] = json!(self.ceiling.map(|(_, what)| what));
        value["further"] = self.measures.iter().skip(1).map(Measure::json).collect();
        value["notes"] = json!(self.notes);
        value
    }

    /// Lines for people.
    pub fn text(&self) -> String {
        let mut text = format!("{}: {}\n", self.name, self.what);
        for measure in &self.measures {
            let Measure {
                what,
                ours,
                peer,
                unit,
                ratio,
                bound,
            } = measure;
            let met = if bound.holds(*ratio) { "" } else { "  NOT MET" };
            text.push_str(&format!(
                "  {what}: ours {ours:.2}, peer {peer:.2} {unit}; ratio {ratio:.3} ({}){met}\n",
                bound.text()
            ));
        }
        if let Some((ceiling, what)) = &self.ceiling {
            text.push_str(&format!("  machine ceiling: {ceiling:.2} ({what})\n"));
        }
        for note in &self.notes {
            text.push_str(&format!("  {note}\n"));
        }
        text
    }
}

/// Four significant digits are more than any of these figures has.
fn round(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return value;
    }
    let digits = 4 - 1 - value.abs().log10().floor() as i32;
    let factor = 10f64.powi(digits.clamp(-12, 12));
    (value * factor).round() / factor
}

/// The middle one of several measurements.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Serialises as its JSON.
impl Serialize for Outcome {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.json().serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(measures: Vec<Measure>) -> Outcome {
        Outcome {
            name: "heal",
            what: "a pair".to_owned(),
            measures,
            ceiling: Some((10.0, "plain read")),
            notes: Vec::new(),
        }
    }

    #[test]
    fn the_first_measure_is_the_comparison() {
        let faster = Measure::new("time", 2.0, 8.0, "s")
            .speed_up()
            .bound(Bound::AtLeast(3.0));
        let smaller = Measure::new("bytes", 123_456.0, 100_000.0, "B").bound(Bound::AtMost(1.0));
        let met = outcome(vec![faster.clone()]);
        assert!(met.is_met());
        let value = met.json();
        assert_eq!(value["ratio"], 4.0);
        assert_eq!(value["name"], "heal");
        assert_eq!(value["met"], true);
        let missed = outcome(vec![faster, smaller]);
        assert!(!missed.is_met());
        assert_eq!(missed.json()["further"][0]["ratio"], 1.235);
        assert!(missed.text().contains("NOT MET"));
    }

    #[test]
    fn a_ratio_without_value_meets_no_bound() {
        assert!(!Bound::AtMost(1.0).holds(f64::NAN));
        assert!(!Bound::AtLeast(1.0).holds(f64::NAN));
        assert!(Bound::Aim(1.05).holds(1.2), "an aim is no promise");
        assert!(median(Vec::new()).is_nan());
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
    }
}
