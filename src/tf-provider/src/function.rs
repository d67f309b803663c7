//! Provider functions: pure computations that Terraform calls in expressions.

use async_trait::async_trait;

use crate::types::Type;
use crate::value::Value;

/// A parameter of a function.
#[derive(Debug, Clone)]
pub struct Parameter {
    /// Name, unique in the function.
    pub name: String,
    /// Type.
    pub ty: Type,
    /// Documentation.
    pub description: String,
    /// Null may be passed; without it Terraform refuses null.
    pub allow_null: bool,
    /// Unknown may be passed; without it Terraform answers unknown by itself.
    pub allow_unknown: bool,
}

impl Parameter {
    /// Neither null nor unknown.
    pub fn new(name: impl Into<String>, ty: Type, description: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            ty,
            description: description.into(),
            allow_null: false,
            allow_unknown: false,
        }
    }

    /// Null may be passed.
    pub fn allow_null(mut self) -> Self {
        self.allow_null = true;
        self
    }
}

/// What a function takes and gives.
#[derive(Debug, Clone)]
pub struct Signature {
    /// Positional parameters.
    pub parameters: Vec<Parameter>,
    /// Takes all further arguments.
    pub variadic: Option<Parameter>,
    /// Type of the result.
    pub returns: Type,
    /// One line.
    pub summary: String,
    /// Documentation, Markdown.
    pub description: String,
    /// Deprecated, with what to use instead.
    pub deprecated: Option<String>,
}

impl Signature {
    /// Without parameters.
    pub fn new(returns: Type, summary: impl Into<String>) -> Self {
        Self {
            parameters: Vec::new(),
            variadic: None,
            returns,
            summary: summary.into(),
            description: String::new(),
            deprecated: None,
        }
    }

    /// Adds a positional parameter.
    pub fn parameter(mut self, parameter: Parameter) -> Self {
        self.parameters.push(parameter);
        self
    }

    /// Sets the parameter for all further arguments.
    pub fn variadic(mut self, parameter: Parameter) -> Self {
        self.variadic = Some(parameter);
        self
    }

    /// Documentation, Markdown.
    pub fn describe(mut self, text: impl Into<String>) -> Self {
        self.description = text.into();
        self
    }
}

/// Why a function gave no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct FunctionError {
    /// Message for the user.
    pub text: String,
    /// Index of the argument at fault, from 0.
    pub argument: Option<usize>,
}

impl FunctionError {
    /// Not about one argument.
    pub fn new(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            argument: None,
        }
    }

    /// About the argument of this index.
    pub fn argument(index: usize, text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            argument: Some(index),
        }
    }
}

/// A function: same input, same output, no input or output.
#[async_trait]
pub trait Function: Send + Sync {
    /// Name without a prefix.
    fn name(&self) -> &str;

    /// What it takes and gives.
    fn signature(&self) -> Signature;

    /// Computes. `arguments` holds the positional ones, then the variadic ones; types and nulls have been checked.
    async fn call(&self, arguments: &[Value]) -> Result<Value, FunctionError>;
}
