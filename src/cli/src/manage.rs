//! Changes from the terminal that need no drill: comparisons, rate limits, groups, disks, encryption keys.

use anyhow::{Result, bail};
use arm_client::{CancellationToken, Method, Wait};
use arm_model::HYPER_V_REPLICA_AZURE;
use arm_model::window::{Throttle, TimeWindow};
use clap::Args;
use serde_json::{Value, json};

use crate::drill;
use crate::lookup::{Vault, text};
use crate::show;
use crate::show_item;

/// Bytes of a megabit.
const BYTES_PER_MEGABIT: u64 = 125_000;

/// Options of `resync`.
#[derive(Args)]
pub struct Resync {
    /// VM name, item name or id
    item: String,
    /// Give up waiting after so many minutes; the comparison itself goes on
    #[arg(long, default_value_t = 720)]
    timeout_minutes: u64,
}

/// Options of `item add-disk` and `item remove-disk`.
#[derive(Args)]
pub struct Disk {
    /// VM name, item name or id
    item: String,
    /// Id of the disk; may be repeated
    #[arg(required = true)]
    disk: Vec<String>,
    /// Give up waiting after so many minutes; the job itself goes on
    #[arg(long, default_value_t = 720)]
    timeout_minutes: u64,
}

/// A rate limit.
#[derive(Args)]
pub struct Limit {
    /// Megabits a second; 0 pauses
    #[arg(long, conflicts_with_all = ["bytes", "off"])]
    megabits: Option<u64>,
    /// Bytes a second; 0 pauses
    #[arg(long, conflicts_with = "off")]
    bytes: Option<u64>,
    /// Lift all limits
    #[arg(long)]
    off: bool,
    /// Keep the limits that are there and add this one
    #[arg(long, conflicts_with = "off")]
    add: bool,
    /// Day on which it holds, such as Monday; may be repeated. Every day without it
    #[arg(long = "day")]
    days: Vec<String>,
    /// Begin, hh:mm
    #[arg(long)]
    start: Option<String>,
    /// End, hh:mm
    #[arg(long)]
    end: Option<String>,
    /// Time zone of the times, such as +01:00; UTC without it
    #[arg(long, allow_hyphen_values = true)]
    utc_offset: Option<String>,
}

// === impl Limit ===

impl Limit {
    /// The limits that shall hold.
    fn throttles(&self, present: &Value) -> Result<Value> {
        if self.off {
            return Ok(json!([]));
        }
        let rate = self.bytes.or_else(|| {
            self.megabits
                .map(|megabits| megabits.saturating_mul(BYTES_PER_MEGABIT))
        });
        let Some(rate) = rate else {
            bail!("--megabits, --bytes or --off is needed");
        };
        let throttle = Throttle {
            bytes_per_second: Some(rate),
            window: TimeWindow {
                days: self.days.clone(),
                start_time: self.start.clone(),
                end_time: self.end.clone(),
                utc_offset: self.utc_offset.clone(),
            },
        };
        if let Err(broken) = throttle.parse() {
            bail!("{} {}", broken.message, broken.advice);
        }
        let mut all = present
            .as_array()
            .filter(|_| self.add)
            .cloned()
            .unwrap_or_default();
        all.push(serde_json::to_value(&throttle)?);
        Ok(Value::Array(all))
    }
}

/// Compares a VM with its replica and waits for the end.
pub async fn resync(vault: &Vault, options: &Resync, json: bool) -> Result<()> {
    let item = vault.item(&options.item).await?;
    drill::act(
        vault,
        &item,
        "repairReplication",
        &json!({}),
        options.timeout_minutes,
        json,
    )
    .await
}

/// Adds or removes disks and waits for the end.
pub async fn change_disk(vault: &Vault, options: &Disk, action: &str, json: bool) -> Result<()> {
    let item = vault.item(&options.item).await?;
    let body = json!({ "properties": { "providerSpecificDetails": {
        "instanceType": HYPER_V_REPLICA_AZURE, "diskIds": options.disk } } });
    drill::act(vault, &item, action, &body, options.timeout_minutes, json).await
}

/// Gives the vault a new encryption key.
pub async fn rotate_key(vault: &Vault, json: bool) -> Result<()> {
    let path = format!("{}/rotateEncryptionKey", vault.id());
    let answer = request(vault, Method::Post, &path, &json!({})).await?;
    if json {
        return show::whole(&answer);
    }
    println!(
        "new key {}, made {}",
        show::property(&answer, "keyId"),
        show::time(&show::property(&answer, "createdTime"))
    );
    Ok(())
}

/// Limits of a host.
pub async fn throttle_host(vault: &Vault, host: &str, limit: &Limit, json: bool) -> Result<()> {
    let host = vault.host(host).await?;
    let present = host.pointer("/properties/throttles").cloned();
    let throttles = limit.throttles(&present.unwrap_or_default())?;
    let body = json!({ "properties": { "throttles": throttles } });
    let answer = request(vault, Method::Patch, text(&host, "/id"), &body).await?;
    limits(&answer, answer.pointer("/properties/throttles"), json)
}

/// Limits of a VM.
pub async fn throttle_item(vault: &Vault, item: &str, limit: &Limit, json: bool) -> Result<()> {
    let at = "/properties/providerSpecificDetails/throttles";
    let item = vault.item(item).await?;
    let throttles = limit.throttles(&item.pointer(at).cloned().unwrap_or_default())?;
    let answer = update(vault, &item, json!({ "throttles": throttles })).await?;
    limits(&answer, answer.pointer(at), json)
}

/// Group of a VM.
pub async fn group(vault: &Vault, item: &str, group: Option<&str>, json: bool) -> Result<()> {
    let item = vault.item(item).await?;
    let details = json!({ "multiVmGroupName": group.unwrap_or_default() });
    let answer = update(vault, &item, details).await?;
    show_item::show(&answer, json)
}

async fn update(vault: &Vault, item: &Value, mut details: Value) -> Result<Value> {
    details["instanceType"] = json!(HYPER_V_REPLICA_AZURE);
    let body = json!({ "properties": { "providerSpecificDetails": details } });
    request(vault, Method::Patch, text(item, "/id"), &body).await
}

async fn request(vault: &Vault, method: Method, path: &str, body: &Value) -> Result<Value> {
    let wait = Wait::new(
        std::time::Duration::from_secs(120),
        CancellationToken::new(),
    );
    Ok(vault
        .client
        .operate(method, path, Some(body), &wait)
        .await?)
}

fn limits(answer: &Value, throttles: Option<&Value>, json: bool) -> Result<()> {
    if json {
        return show::whole(answer);
    }
    let all: Vec<String> = throttles
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .map(show_item::throttle_text)
        .collect();
    println!(
        "{}",
        if all.is_empty() {
            "no limit".to_owned()
        } else {
            all.join("\n")
        }
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit() -> Limit {
        Limit {
            megabits: Some(8),
            bytes: None,
            off: false,
            add: false,
            days: vec!["Monday".to_owned()],
            start: Some("08:00".to_owned()),
            end: None,
            utc_offset: None,
        }
    }

    #[test]
    fn a_limit_takes_the_place_of_the_others_or_is_added_to_them() {
        let present = json!([{ "bytesPerSecond": 1 }]);
        let own = json!({ "bytesPerSecond": 1_000_000, "days": ["Monday"], "startTime": "08:00" });
        assert_eq!(limit().throttles(&present).unwrap(), json!([own]));
        let added = Limit {
            add: true,
            ..limit()
        };
        assert_eq!(
            added.throttles(&present).unwrap(),
            json!([{ "bytesPerSecond": 1 }, own])
        );
        let off = Limit {
            off: true,
            ..limit()
        };
        assert_eq!(off.throttles(&present).unwrap(), json!([]));
        let wrong = Limit {
            start: Some("8".to_owned()),
            ..limit()
        };
        assert!(wrong.throttles(&present).is_err());
        let none = Limit {
            megabits: None,
            ..limit()
        };
        assert!(none.throttles(&present).is_err());
    }
}
