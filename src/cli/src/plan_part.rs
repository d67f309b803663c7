//! A part of a recovery plan, in place of the whole.

use anyhow::Result;
use clap::Args;
use serde_json::{Value, json};

use crate::lookup::{Vault, text};

/// Options that name a part of a plan.
#[derive(Args)]
pub struct Part {
    /// Part of the plan: only these of its VMs (VM name, item name or id; several with commas), and those of --groups
    #[arg(
        long,
        value_name = "VM",
        value_delimiter = ',',
        requires = "plan",
        conflicts_with = "item"
    )]
    vms: Vec<String>,
    /// Part of the plan: only the VMs of these boot groups (numbers from 1; several with commas), and those of --vms
    #[arg(long, value_name = "NUMBER", value_delimiter = ',', requires = "plan", conflicts_with = "item",
        value_parser = clap::value_parser!(u32).range(1..))]
    groups: Vec<u32>,
}

impl Part {
    /// Whether the whole plan is meant.
    pub fn is_whole(&self) -> bool {
        self.vms.is_empty() && self.groups.is_empty()
    }

    /// Puts the part into the body of a request.
    pub async fn set(&self, vault: &Vault, body: &mut Value) -> Result<()> {
        let mut items = Vec::new();
        for vm in &self.vms {
            items.push(text(&vault.item(vm).await?, "/id").to_owned());
        }
        if !items.is_empty() {
            body["properties"]["protectedItemIds"] = json!(items);
        }
        if !self.groups.is_empty() {
            body["properties"]["groupIds"] = json!(self.groups);
        }
        Ok(())
    }

    /// What it is called in a sentence, such as `VM web01 and the VMs of groups 2, 3`.
    pub fn text(&self) -> String {
        let numbers: Vec<String> = self.groups.iter().map(ToString::to_string).collect();
        let mut parts = Vec::new();
        match self.vms.as_slice() {
            [] => {}
            [one] => parts.push(format!("VM {one}")),
            several => parts.push(format!("VMs {}", several.join(", "))),
        }
        match numbers.as_slice() {
            [] => {}
            [one] => parts.push(format!("the VMs of group {one}")),
            several => parts.push(format!("the VMs of groups {}", several.join(", "))),
        }
        parts.join(" and ")
    }
}
