//! Provider functions: taking ARM ids apart and putting them together.

use arm_model::ArmId;
use async_trait::async_trait;
use tf_provider::{Function, FunctionError, Object, Parameter, Signature, Type, Value};

/// `parse_id`
pub(crate) struct ParseId;

#[async_trait]
impl Function for ParseId {
    fn name(&self) -> &str {
        "parse_id"
    }

    fn signature(&self) -> Signature {
        let returns = Type::object([
            ("subscription_id".to_owned(), Type::String),
            ("resource_group_name".to_owned(), Type::String),
            ("resource_type".to_owned(), Type::String),
            ("name".to_owned(), Type::String),
            ("parent_id".to_owned(), Type::String),
            ("names".to_owned(), Type::map(Type::String)),
        ]);
        Signature::new(returns, "Takes an ARM id apart")
            .describe(
                "Takes an ARM id apart: `subscription_id`, `resource_group_name` (null when it has none), `resource_type`, \
                 `name`, `parent_id` (null at the top) and `names`, a map of all resource types in the id to their names.",
            )
            .parameter(Parameter::new("id", Type::String, "The ARM id."))
    }

    async fn call(&self, arguments: &[Value]) -> Result<Value, FunctionError> {
        let id = id_of(arguments, 0)?;
        let names = id
            .segments()
            .iter()
            .map(|(kind, name)| (kind.clone(), name.clone()));
        Ok(Object::new()
            .with("subscription_id", id.subscription())
            .with("resource_group_name", id.resource_group())
            .with("resource_type", id.resource_type())
            .with("name", id.name())
            .with("parent_id", id.parent().map(|parent| parent.to_string()))
            .with("names", Value::map(names))
            .into())
    }
}

/// `build_id`
pub(crate) struct BuildId;

#[async_trait]
impl Function for BuildId {
    fn name(&self) -> &str {
        "build_id"
    }

    fn signature(&self) -> Signature {
        Signature::new(Type::String, "Puts an ARM id together")
            .describe(
                "Puts the ARM id of a child together. With the id of a resource group as parent, `resource_type` begins with the \
                 namespace, such as `Microsoft.RecoveryServices/vaults`; with a resource as parent it is one segment, such as `replicationPolicies`.",
            )
            .parameter(Parameter::new("parent_id", Type::String, "Id of the parent: a resource group or a resource."))
            .parameter(Parameter::new("resource_type", Type::String, "Type of the child."))
            .parameter(Parameter::new("name", Type::String, "Name of the child."))
    }

    async fn call(&self, arguments: &[Value]) -> Result<Value, FunctionError> {
        let parent = id_of(arguments, 0)?;
        let text = |index: usize| {
            arguments
                .get(index)
                .and_then(Value::as_str)
                .unwrap_or_default()
        };
        let (kind, name) = (text(1), text(2));
        let middle = match (parent.namespace().is_some(), kind.split('/').count()) {
            (true, 1) => kind.to_owned(),
            (false, 2) => format!("providers/{kind}"),
            (true, _) => {
                return Err(FunctionError::argument(
                    1,
                    "below a resource it must be one segment, such as replicationPolicies",
                ));
            }
            (false, _) => {
                return Err(FunctionError::argument(
                    1,
                    "below a resource group it must be a namespace and a type, such as Microsoft.RecoveryServices/vaults",
                ));
            }
        };
        if name.is_empty() || name.contains('/') {
            return Err(FunctionError::argument(2, "must be a name without slashes"));
        }
        let id = ArmId::parse(&format!("{parent}/{middle}/{name}"))
            .map_err(|error| FunctionError::argument(2, error.to_string()))?;
        Ok(Value::from(id.to_string()))
    }
}

fn id_of(arguments: &[Value], index: usize) -> Result<ArmId, FunctionError> {
    let text = arguments
        .get(index)
        .and_then(Value::as_str)
        .unwrap_or_default();
    ArmId::parse(text).map_err(|error| FunctionError::argument(index, error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP: &str = "/subscriptions/s/resourceGroups/g";

    async fn build(parent: &str, kind: &str, name: &str) -> Result<Value, FunctionError> {
        BuildId
            .call(&[parent.into(), kind.into(), name.into()])
            .await
    }

    #[tokio::test]
    async fn what_is_built_can_be_parsed_again() {
        let vault = build(GROUP, "Microsoft.RecoveryServices/vaults", "v")
            .await
            .unwrap();
        let policy = build(vault.as_str().unwrap(), "replicationPolicies", "p")
            .await
            .unwrap();
        let parsed = ParseId.call(&[policy]).await.unwrap();
        let parsed = parsed.as_object().unwrap();
        assert_eq!(parsed.str("name"), Some("p"));
        assert_eq!(parsed.str("parent_id"), vault.as_str());
        assert_eq!(parsed.string_map("names")["vaults"], "v");
        assert_eq!(
            parsed.str("resource_type"),
            Some("Microsoft.RecoveryServices/vaults/replicationPolicies")
        );
    }

    #[tokio::test]
    async fn the_argument_at_fault_is_named() {
        assert_eq!(build("x", "a/b", "n").await.unwrap_err().argument, Some(0));
        assert_eq!(
            build(GROUP, "vaults", "n").await.unwrap_err().argument,
            Some(1)
        );
        assert_eq!(
            build(GROUP, "a/b", "n/m").await.unwrap_err().argument,
            Some(2)
        );
    }
}
