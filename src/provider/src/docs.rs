//! The documentation in the registry's layout, written out of the schemas so that it can't drift from them.
//!
//! `docs/index.md`, `docs/resources/*.md`, `docs/data-sources/*.md`, `docs/ephemeral-resources/*.md`,
//! `docs/actions/*.md`, `docs/functions/*.md`. The example of a page is the file `main.tf` of its folder under `examples/`.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use tf_provider::{
    Action, Attribute, AttributeKind, DataSource, EphemeralResource, Function, Nesting, Provider,
    Resource, Schema, Type,
};

use crate::provider::ARGUMENTS;
use crate::{Session, SiteRecovery};

/// Writes all pages into `out`, with the examples in `examples`.
pub fn write(out: &Path, examples: &Path) -> Result<()> {
    for (path, text) in pages(examples)? {
        let path = out.join(path);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        }
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

/// All pages: path below the documentation's folder, and text.
pub fn pages(examples: &Path) -> Result<Vec<(String, String)>> {
    let provider = SiteRecovery;
    let mut pages = vec![("index.md".to_owned(), index(examples)?)];
    for resource in provider.resources() {
        let name = resource.type_name();
        let example = example(&examples.join("resources").join(name))?;
        pages.push((
            format!("resources/{}.md", short(name)),
            resource_page(resource.as_ref(), &example),
        ));
    }
    for data in provider.data_sources() {
        let name = data.type_name();
        let example = example(&examples.join("data-sources").join(name))?;
        pages.push((
            format!("data-sources/{}.md", short(name)),
            data_page(data.as_ref(), &example),
        ));
    }
    for ephemeral in provider.ephemeral_resources() {
        let name = ephemeral.type_name();
        let example = example(&examples.join("ephemeral-resources").join(name))?;
        pages.push((
            format!("ephemeral-resources/{}.md", short(name)),
            ephemeral_page(ephemeral.as_ref(), &example),
        ));
    }
    for action in provider.actions() {
        let name = action.type_name();
        let example = example(&examples.join("actions").join(name))?;
        pages.push((
            format!("actions/{}.md", short(name)),
            action_page(action.as_ref(), &example),
        ));
    }
    for function in provider.functions() {
        let example = example(&examples.join("functions").join(function.name()))?;
        pages.push((
            format!("functions/{}.md", function.name()),
            function_page(function.as_ref(), &example),
        ));
    }
    Ok(pages)
}

fn short(type_name: &str) -> &str {
    type_name.strip_prefix("siterecovery_").unwrap_or(type_name)
}

fn example(folder: &Path) -> Result<String> {
    let path = folder.join("main.tf");
    let text = fs::read_to_string(&path)
        .with_context(|| format!("read the example {}", path.display()))?;
    Ok(format!(
        "## Example\n\n```terraform\n{}\n```\n",
        text.trim_end()
    ))
}

fn head(title: &str, kind: &str, text: &str) -> String {
    let first = text
        .split(". ")
        .next()
        .unwrap_or(text)
        .trim_end_matches('.');
    format!(
        "---\npage_title: \"{title}{}\"\ndescription: |-\n  {first}.\n---\n\n# {title}{}\n\n{text}\n\n",
        if kind.is_empty() {
            String::new()
        } else {
            format!(" ({kind})")
        },
        if kind.is_empty() {
            String::new()
        } else {
            format!(" ({kind})")
        },
    )
}

fn index(examples: &Path) -> Result<String> {
    let mut page = head(
        "siterecovery provider",
        "",
        "Disaster recovery for Hyper-V virtual machines: vaults, sites, hosts, policies, protected VMs, recovery plans and drills. \
         The provider speaks to an orchestrator and puts the replication engine onto the hosts.",
    );
    page += &example(&examples.join("provider"))?;
    page += "\n## Arguments\n\nEach may be left out when its environment variable is set. An argument goes before the variable.\n\n";
    page += "| argument | environment variable | meaning |\n|---|---|---|\n";
    for (name, variable, text) in ARGUMENTS {
        let _ = writeln!(page, "| `{name}` | `{variable}` | {text} |");
    }
    page += "\n`endpoint`, `tenant_id`, `client_id`, `client_secret` and `subscription_id` are needed. The secret is sensitive: keep it in the \
             environment. The provider signs in when it is configured, so that wrong credentials show at once, at the argument.\n\n";
    page += "## Waiting, interrupting, trying again\n\n\
             Operations that take time are jobs of the orchestrator. The provider waits for them and writes their progress to the log \
             (`TF_LOG_PROVIDER=info`). Every resource has `timeouts`. An interrupt stops the waiting, not the job; what has been made so far is in \
             the state, and the next apply goes on from there. Figures that change by themselves, such as RPO, health and heartbeats, never cause a \
             difference in a plan.\n\n";
    page += "## Import\n\nEvery resource can be imported by its ARM id, with an `import` block by `id`, or from Terraform 1.12 on by \
             `identity = { id = \"…\" }`.\n";
    Ok(page)
}

fn resource_page(resource: &dyn Resource<Session>, example: &str) -> String {
    let schema = resource.schema();
    let name = resource.type_name();
    let mut page = head(name, "Resource", &schema.block.description);
    page += example;
    page += &arguments(&schema);
    let _ = write!(
        page,
        "\n## Import\n\n```terraform\nimport {{\n  to = {name}.this\n  id = \"{}\"\n}}\n```\n",
        import_id(name)
    );
    page
}

fn import_id(type_name: &str) -> String {
    let vault = "/subscriptions/<subscription>/resourceGroups/<group>/providers/Microsoft.RecoveryServices/vaults/<vault>";
    let group = "/subscriptions/<subscription>/resourceGroups/<group>/providers";
    let container =
        format!("{vault}/replicationFabrics/<site>/replicationProtectionContainers/<container>");
    match short(type_name) {
        "vault" => vault.to_owned(),
        "storage_account" => format!("{group}/Microsoft.Storage/storageAccounts/<name>"),
        "virtual_network" => format!("{group}/Microsoft.Network/virtualNetworks/<name>"),
        "hyperv_site" => format!("{vault}/replicationFabrics/<name>"),
        "hyperv_host" => format!(
            "{vault}/replicationFabrics/<site>/replicationRecoveryServicesProviders/<engine id>"
        ),
        "replication_policy" => format!("{vault}/replicationPolicies/<name>"),
        "replication_policy_association" => {
            format!("{container}/replicationProtectionContainerMappings/<name>")
        }
        "network_mapping" => format!(
            "{vault}/replicationFabrics/<site>/replicationNetworks/<network>/replicationNetworkMappings/<name>"
        ),
        "protected_vm" => format!("{container}/replicationProtectedItems/<VM id>"),
        "recovery_plan" => format!("{vault}/replicationRecoveryPlans/<name>"),
        "drill_schedule" => format!("{vault}/drillSchedules/<name>"),
        "test_failover" => format!("{vault}/replicationJobs/<job>"),
        _ => "<ARM id>".to_owned(),
    }
}

fn data_page(data: &dyn DataSource<Session>, example: &str) -> String {
    let schema = data.schema();
    head(data.type_name(), "Data Source", &schema.block.description) + example + &arguments(&schema)
}

fn ephemeral_page(ephemeral: &dyn EphemeralResource<Session>, example: &str) -> String {
    let schema = ephemeral.schema();
    head(
        ephemeral.type_name(),
        "Ephemeral Resource",
        &schema.block.description,
    ) + "Needs Terraform 1.10 or newer.\n\n"
        + example
        + &arguments(&schema)
}

fn action_page(action: &dyn Action<Session>, example: &str) -> String {
    let schema = action.schema();
    let name = action.type_name();
    let mut page = head(name, "Action", &schema.block.description);
    page += "Needs Terraform 1.14 or newer; `siterecovery failover` does the same without it. What is done stands in the action's progress \
             lines and in the vault's jobs, nothing of it in the state.\n\n";
    page += example;
    let _ = write!(
        page,
        "\nBy hand:\n\n```sh\nterraform apply -invoke=action.{name}.this\n```\n"
    );
    page += &arguments(&schema);
    page
}

fn function_page(function: &dyn Function, example: &str) -> String {
    let signature = function.signature();
    let mut page = head(function.name(), "Function", &signature.description);
    page += "Needs Terraform 1.8 or newer.\n\n";
    page += example;
    let parameters: Vec<String> = signature
        .parameters
        .iter()
        .map(|p| format!("{} {}", p.name, type_text(&p.ty)))
        .collect();
    let _ = write!(
        page,
        "\n## Signature\n\n```text\n{}({}) {}\n```\n\n## Arguments\n\n",
        function.name(),
        parameters.join(", "),
        type_text(&signature.returns)
    );
    for parameter in &signature.parameters {
        let _ = writeln!(
            page,
            "* `{}` ({}) {}",
            parameter.name,
            type_text(&parameter.ty),
            parameter.description
        );
    }
    page
}

fn arguments(schema: &Schema) -> String {
    let mut settable = String::new();
    let mut computed = String::new();
    for (name, attribute) in &schema.block.attributes {
        if attribute.required || attribute.optional {
            line(&mut settable, name, attribute, 0);
        } else {
            line(&mut computed, name, attribute, 0);
        }
    }
    for (name, block) in &schema.block.blocks {
        let need = if block.min_items > 0 {
            "required"
        } else {
            "optional"
        };
        let _ = writeln!(
            settable,
            "* `{name}` (blocks, {need}) {}",
            block.block.description
        );
        for (name, attribute) in &block.block.attributes {
            line(&mut settable, name, attribute, 1);
        }
    }
    let mut text = String::new();
    if !settable.is_empty() {
        text += &format!("\n## Arguments\n\n{settable}");
    }
    if !computed.is_empty() {
        text += &format!("\n## Attributes\n\n{computed}");
    }
    text
}

fn line(out: &mut String, name: &str, attribute: &Attribute, depth: usize) {
    let mut marks = vec![kind_text(attribute)];
    if attribute.required {
        marks.push("required".to_owned());
    } else if attribute.optional {
        marks.push("optional".to_owned());
    }
    if attribute.sensitive {
        marks.push("sensitive".to_owned());
    }
    let indent = "  ".repeat(depth);
    let _ = writeln!(
        out,
        "{indent}* `{name}` ({}) {}",
        marks.join(", "),
        attribute.description
    );
    if let AttributeKind::Nested { attributes, .. } = &attribute.kind {
        for (name, inner) in attributes {
            line(out, name, inner, depth + 1);
        }
    }
}

fn kind_text(attribute: &Attribute) -> String {
    match &attribute.kind {
        AttributeKind::Plain(ty) => type_text(ty),
        AttributeKind::Nested { nesting, .. } => match nesting {
            Nesting::Single => "object",
            Nesting::List => "list of objects",
            Nesting::Set => "set of objects",
            Nesting::Map => "map of objects",
        }
        .to_owned(),
    }
}

fn type_text(ty: &Type) -> String {
    match ty {
        Type::String => "string".to_owned(),
        Type::Number => "number".to_owned(),
        Type::Bool => "bool".to_owned(),
        Type::Dynamic => "any".to_owned(),
        Type::List(element) => format!("list of {}", type_text(element)),
        Type::Set(element) => format!("set of {}", type_text(element)),
        Type::Map(element) => format!("map of {}", type_text(element)),
        _ => "object".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_in_the_tree_is_current() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let mut stale = Vec::new();
        for (path, text) in pages(&root.join("examples")).unwrap() {
            if fs::read_to_string(root.join("docs").join(&path))
                .ok()
                .as_deref()
                != Some(text.as_str())
            {
                stale.push(path);
            }
        }
        assert!(
            stale.is_empty(),
            "run `terraform-provider-siterecovery docs`; these pages are not current: {stale:?}"
        );
    }
}
