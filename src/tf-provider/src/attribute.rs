//! Attributes of a schema: their type, who sets them, and how their changes are planned.
//!
//! ```
//! use tf_provider::{Attribute, Value};
//! let name = Attribute::string().required().requires_replace().describe("Name of the vault.");
//! let retention = Attribute::number().optional().default(24).check(|value| {
//!     match value.as_number().and_then(|hours| hours.as_u64()) {
//!         Some(1..=72) => Ok(()),
//!         _ => Err("must be between 1 and 72 hours".to_owned()),
//!     }
//! });
//! let id = Attribute::string().computed().use_state_for_unknown();
//! ```

use std::fmt;
use std::sync::Arc;

use crate::types::Type;
use crate::value::Value;

/// How nested attributes repeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nesting {
    /// One object.
    Single,
    /// A list of objects.
    List,
    /// A set of objects.
    Set,
    /// A map of objects.
    Map,
}

/// What an attribute holds.
#[derive(Debug, Clone)]
pub enum AttributeKind {
    /// A value of a plain type.
    Plain(Type),
    /// Objects with attributes of their own.
    Nested {
        /// Members in the order of the schema.
        attributes: Vec<(String, Attribute)>,
        /// How the object repeats.
        nesting: Nesting,
    },
}

type Check = Arc<dyn Fn(&Value) -> Result<(), String> + Send + Sync>;
type Same = Arc<dyn Fn(&Value, &Value) -> bool + Send + Sync>;

/// One attribute.
#[derive(Clone)]
pub struct Attribute {
    /// What it holds.
    pub kind: AttributeKind,
    /// Text for documentation, Markdown.
    pub description: String,
    /// The user must set it.
    pub required: bool,
    /// The user may set it.
    pub optional: bool,
    /// The provider may set it when the user does not.
    pub computed: bool,
    /// Hidden in the user interface.
    pub sensitive: bool,
    /// Never stored; only apply sees it.
    pub write_only: bool,
    /// Deprecated, with what to use instead.
    pub deprecated: Option<String>,
    pub(crate) replace: bool,
    pub(crate) keep_state: bool,
    pub(crate) keep_until_known: bool,
    pub(crate) default: Option<Value>,
    pub(crate) checks: Vec<Check>,
    pub(crate) same: Option<Same>,
}

impl Attribute {
    fn of_kind(kind: AttributeKind) -> Self {
        Self {
            kind,
            description: String::new(),
            required: false,
            optional: false,
            computed: false,
            sensitive: false,
            write_only: false,
            deprecated: None,
            replace: false,
            keep_state: false,
            keep_until_known: false,
            default: None,
            checks: Vec::new(),
            same: None,
        }
    }

    /// Of any plain type.
    pub fn new(ty: Type) -> Self {
        Self::of_kind(AttributeKind::Plain(ty))
    }

    /// Text.
    pub fn string() -> Self {
        Self::new(Type::String)
    }

    /// Number.
    pub fn number() -> Self {
        Self::new(Type::Number)
    }

    /// Flag.
    pub fn bool() -> Self {
        Self::new(Type::Bool)
    }

    /// Anything.
    pub fn dynamic() -> Self {
        Self::new(Type::Dynamic)
    }

    /// List of a plain type.
    pub fn list(element: Type) -> Self {
        Self::new(Type::list(element))
    }

    /// Set of a plain type.
    pub fn set(element: Type) -> Self {
        Self::new(Type::set(element))
    }

    /// Map of a plain type.
    pub fn map(element: Type) -> Self {
        Self::new(Type::map(element))
    }

    /// Objects with attributes of their own.
    pub fn nested<N: Into<String>>(
        nesting: Nesting,
        attributes: impl IntoIterator<Item = (N, Attribute)>,
    ) -> Self {
        let attributes = attributes
            .into_iter()
            .map(|(name, attribute)| (name.into(), attribute))
            .collect();
        Self::of_kind(AttributeKind::Nested {
            attributes,
            nesting,
        })
    }

    /// The user must set it.
    pub fn required(mut self) -> Self {
        self.required = true;
        self
    }

    /// The user may set it.
    pub fn optional(mut self) -> Self {
        self.optional = true;
        self
    }

    /// The provider sets it (with `optional`: when the user does not).
    pub fn computed(mut self) -> Self {
        self.computed = true;
        self
    }

    /// Hides the value in Terraform's output.
    pub fn sensitive(mut self) -> Self {
        self.sensitive = true;
        self
    }

    /// Never stored in plan or state; needs Terraform 1.11.
    pub fn write_only(mut self) -> Self {
        self.write_only = true;
        self
    }

    /// Documentation, Markdown.
    pub fn describe(mut self, text: impl Into<String>) -> Self {
        self.description = text.into();
        self
    }

    /// Marks it deprecated and says what to use instead.
    pub fn deprecate(mut self, message: impl Into<String>) -> Self {
        self.deprecated = Some(message.into());
        self
    }

    /// A change cannot be done in place.
    pub fn requires_replace(mut self) -> Self {
        self.replace = true;
        self
    }

    /// A computed value that never changes after creation: keep it in plans of updates.
    pub fn use_state_for_unknown(mut self) -> Self {
        self.keep_state = true;
        self
    }

    /// While the configuration does not know the value yet, plans keep the stored one. For arguments whose change is costly:
    /// an object is then not replaced over a value that will most likely turn out to be the same. Should it turn out to be
    /// another one during apply, Terraform stops there, nothing is touched, and the next plan shows the change.
    pub fn keep_until_known(mut self) -> Self {
        self.keep_until_known = true;
        self
    }

    /// Value when the user sets none; makes the attribute computed too, as Terraform demands.
    pub fn default(mut self, value: impl Into<Value>) -> Self {
        self.default = Some(value.into());
        self.computed = true;
        self
    }

    /// A rule for a known, non-null value; the error text ends a sentence that starts with the attribute's name,
    /// as in "must be between 1 and 72 hours".
    pub fn check(
        mut self,
        rule: impl Fn(&Value) -> Result<(), String> + Send + Sync + 'static,
    ) -> Self {
        self.checks.push(Arc::new(rule));
        self
    }

    /// Only these texts are allowed.
    pub fn one_of(self, allowed: &'static [&'static str]) -> Self {
        self.check(move |value| match value.as_str() {
            Some(text) if allowed.contains(&text) => Ok(()),
            _ => Err(format!("must be one of {}", allowed.join(", "))),
        })
    }

    /// Only these texts are allowed, in any case; a change of case alone is no change.
    pub fn one_of_ignoring_case(self, allowed: &'static [&'static str]) -> Self {
        let known = |text: &str| allowed.iter().any(|one| one.eq_ignore_ascii_case(text));
        self.ignore_case().check(move |value| match value.as_str() {
            Some(text) if known(text) => Ok(()),
            _ => Err(format!("must be one of {}", allowed.join(", "))),
        })
    }

    /// Only whole numbers in this range are allowed.
    pub fn whole_in(self, range: std::ops::RangeInclusive<i64>) -> Self {
        self.check(
            move |value| match value.as_number().and_then(|number| number.as_i64()) {
                Some(number) if range.contains(&number) => Ok(()),
                _ => Err(format!(
                    "must be a whole number from {} to {}",
                    range.start(),
                    range.end()
                )),
            },
        )
    }

    /// When prior and configured value mean the same (for example, ids that differ in case only), there is no change:
    /// the plan keeps the prior spelling, a read keeps the user's.
    pub fn same_when(
        mut self,
        same: impl Fn(&Value, &Value) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.same = Some(Arc::new(same));
        self
    }

    /// Text that is compared without case.
    pub fn ignore_case(self) -> Self {
        self.same_when(|left, right| match (left.as_str(), right.as_str()) {
            (Some(left), Some(right)) => left.eq_ignore_ascii_case(right),
            _ => false,
        })
    }

    /// The type of its values.
    pub fn ty(&self) -> Type {
        match &self.kind {
            AttributeKind::Plain(ty) => ty.clone(),
            AttributeKind::Nested {
                attributes,
                nesting,
            } => {
                let object = Type::object(
                    attributes
                        .iter()
                        .map(|(name, inner)| (name.clone(), inner.ty())),
                );
                match nesting {
                    Nesting::Single => object,
                    Nesting::List => Type::list(object),
                    Nesting::Set => Type::set(object),
                    Nesting::Map => Type::map(object),
                }
            }
        }
    }

    pub(crate) fn means_the_same(&self, left: &Value, right: &Value) -> bool {
        left == right || self.same.as_ref().is_some_and(|same| same(left, right))
    }
}

impl fmt::Debug for Attribute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attribute")
            .field("kind", &self.kind)
            .field("required", &self.required)
            .field("optional", &self.optional)
            .field("computed", &self.computed)
            .field("sensitive", &self.sensitive)
            .field("write_only", &self.write_only)
            .finish_non_exhaustive()
    }
}
