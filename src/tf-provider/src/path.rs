//! Paths into a configuration or state, shown to the user as the line of the argument at fault.

use std::fmt;

use crate::proto::tfplugin6 as pb;

/// One step of an [`AttributePath`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Step {
    /// Attribute or block by name.
    Attribute(String),
    /// Map element by key.
    Key(String),
    /// List or tuple element by index.
    Index(usize),
}

/// A path from the root object inwards. Set elements have no address: a path must stop at the set.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct AttributePath {
    steps: Vec<Step>,
}

impl AttributePath {
    /// The root object itself.
    pub fn root() -> Self {
        Self::default()
    }

    /// An attribute or block of the root object.
    pub fn new(name: impl Into<String>) -> Self {
        Self::root().attribute(name)
    }

    /// Goes on to an attribute or block.
    pub fn attribute(mut self, name: impl Into<String>) -> Self {
        self.steps.push(Step::Attribute(name.into()));
        self
    }

    /// Goes on to a map element.
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.steps.push(Step::Key(key.into()));
        self
    }

    /// Goes on to a list element.
    pub fn index(mut self, index: usize) -> Self {
        self.steps.push(Step::Index(index));
        self
    }

    /// The steps, outermost first.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// True for the root object.
    pub fn is_root(&self) -> bool {
        self.steps.is_empty()
    }

    pub(crate) fn to_proto(&self) -> pb::AttributePath {
        use pb::attribute_path::step::Selector;
        let steps = self.steps.iter().map(|step| {
            let selector = match step {
                Step::Attribute(name) => Selector::AttributeName(name.clone()),
                Step::Key(key) => Selector::ElementKeyString(key.clone()),
                Step::Index(index) => {
                    Selector::ElementKeyInt(i64::try_from(*index).unwrap_or(i64::MAX))
                }
            };
            pb::attribute_path::Step {
                selector: Some(selector),
            }
        });
        pb::AttributePath {
            steps: steps.collect(),
        }
    }
}

impl From<&str> for AttributePath {
    fn from(name: &str) -> Self {
        Self::new(name)
    }
}

impl fmt::Display for AttributePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, step) in self.steps.iter().enumerate() {
            match step {
                Step::Attribute(name) if position == 0 => write!(f, "{name}")?,
                Step::Attribute(name) => write!(f, ".{name}")?,
                Step::Key(key) => write!(f, "[{key:?}]")?,
                Step::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}
