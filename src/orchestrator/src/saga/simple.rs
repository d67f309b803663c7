//! Jobs that write or remove a few documents: sites, policies, associations, plans, hosts.
//!
//! Input of `put`: `{key, kind, body, before}`. Input of `remove`: `{documents: [{key, kind, body}], engines: [id]}`.
//! The last task does the work, the ones before it are the checks that the request has already passed.

use async_trait::async_trait;
use serde_json::Value;

use super::{Outcome, Run, Workflow};
use crate::fault::Fault;
use crate::store::records::{
    self, EngineRecord, EnrolmentKey, Fabric, Item, Mapping, Plan, Policy, Record, Recovered,
};
use crate::store::{Change, Expect};

/// Writes one document.
pub struct Put;

/// Removes documents, and engines with all that hangs on them.
pub struct Remove;

/// Waits for a fresh report of a host. Input: `{engine}`.
pub struct Refresh;

#[async_trait]
impl Workflow for Put {
    async fn act(&self, run: &mut Run<'_>, node: usize) -> Result<Outcome, Fault> {
        if is_last(run, node) {
            let body = run.job.input.get("body").cloned().unwrap_or_default();
            let change = put_change(run.input("kind"), run.input("key"), body)?;
            run.app.store.apply(vec![change]).await?;
        }
        Ok(Outcome::Done)
    }

    async fn undo(&self, run: &mut Run<'_>, node: usize) -> Result<Outcome, Fault> {
        if is_last(run, node) {
            let before = run.job.input.get("before").cloned().unwrap_or_default();
            let change = if before.is_null() {
                records::delete(run.input("key"))
            } else {
                put_change(run.input("kind"), run.input("key"), before)?
            };
            run.app.store.apply(vec![change]).await?;
        }
        Ok(Outcome::Done)
    }
}

#[async_trait]
impl Workflow for Remove {
    async fn act(&self, run: &mut Run<'_>, node: usize) -> Result<Outcome, Fault> {
        if !is_last(run, node) {
            return Ok(Outcome::Done);
        }
        nothing_is_left(run).await?;
        let mut changes = Vec::new();
        for document in list(&run.job.input, "documents") {
            if let Some(key) = document.get("key").and_then(Value::as_str) {
                changes.push(records::delete(key));
            }
        }
        let engines: Vec<String> = list(&run.job.input, "engines")
            .iter()
            .filter_map(|id| id.as_str().map(str::to_owned))
            .collect();
        for engine in &engines {
            changes.push(records::delete(records::engine_key(engine)));
            let prefix = records::recovered_key(engine, "");
            for vm in records::list::<Recovered>(run.app.store.as_ref(), &prefix).await? {
                changes.push(records::delete(vm.key));
            }
        }
        let gone = |key: &EnrolmentKey| {
            let of_site = changes.iter().any(|change| {
                matches!(change, Change::Delete { key: deleted, .. } if *deleted == key.fabric_id.to_ascii_lowercase())
            });
            let of_engine = key
                .engine_id
                .as_ref()
                .is_some_and(|id| engines.contains(id));
            of_site || of_engine
        };
        // An unregistered host shall not come back with the key it once used, nor with one of a removed site.
        let keys = records::list::<EnrolmentKey>(run.app.store.as_ref(), "~key/").await?;
        let revoked: Vec<Change> = keys
            .into_iter()
            .filter(|key| gone(&key.record))
            .map(|key| records::delete(key.key))
            .collect();
        changes.extend(revoked);
        run.app.store.apply(changes).await?;
        for engine in &engines {
            run.app.fleet.forget(engine);
        }
        Ok(Outcome::Done)
    }

    async fn undo(&self, run: &mut Run<'_>, node: usize) -> Result<Outcome, Fault> {
        if is_last(run, node) {
            for document in list(&run.job.input, "documents").to_vec() {
                let text = |name: &str| {
                    document
                        .get(name)
                        .and_then(Value::as_str)
                        .unwrap_or_default()
                };
                let body = document.get("body").cloned().unwrap_or_default();
                let change = put_change(text("kind"), text("key"), body)?;
                run.app.store.apply(vec![change]).await?;
            }
        }
        Ok(Outcome::Done)
    }
}

#[async_trait]
impl Workflow for Refresh {
    async fn act(&self, run: &mut Run<'_>, _node: usize) -> Result<Outcome, Fault> {
        let engine = run.input("engine").to_owned();
        let seen = run
            .app
            .fleet
            .get(&engine)
            .map_or(0, |live| live.last_seen_unix_ms);
        if seen >= run.job.created_unix_ms {
            return Ok(Outcome::Done);
        }
        if run.waited_ms() > run.app.patience.engine_ms {
            return Err(super::enable_protection::host_disconnected(
                run.app, &engine,
            ));
        }
        Ok(Outcome::Wait)
    }

    async fn undo(&self, _run: &mut Run<'_>, _node: usize) -> Result<Outcome, Fault> {
        Ok(Outcome::Done)
    }
}

/// An item that was written since the request was checked would be left where no request can reach it.
async fn nothing_is_left(run: &Run<'_>) -> Result<(), Fault> {
    let engines = list(&run.job.input, "engines");
    let sites: Vec<String> = list(&run.job.input, "documents")
        .iter()
        .filter(|document| document.get("kind").and_then(Value::as_str) == Some(Fabric::KIND))
        .filter_map(|document| document.get("key").and_then(Value::as_str))
        .map(|key| format!("{key}/"))
        .collect();
    if engines.is_empty() && sites.is_empty() {
        return Ok(());
    }
    let items = records::list::<Item>(run.app.store.as_ref(), "").await?;
    let left = items.into_iter().find(|item| {
        sites.iter().any(|site| item.key.starts_with(site))
            || engines
                .iter()
                .filter_map(Value::as_str)
                .any(|engine| item.record.needs_engine(engine))
    });
    match left {
        None => Ok(()),
        Some(item) => Err(Fault::conflict(
            "InUse",
            &run.job.resource,
            format!("`{}` has been protected in the meantime.", item.record.id),
            "Switch its protection off, and repeat the request.",
        )),
    }
}

fn is_last(run: &Run<'_>, node: usize) -> bool {
    node + 1 == run.job.properties.tasks.len()
}

fn list<'a>(input: &'a Value, name: &str) -> &'a [Value] {
    input
        .get(name)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

fn put_change(kind: &str, key: &str, body: Value) -> Result<Change, Fault> {
    const KINDS: &[&str] = &[
        Fabric::KIND,
        Policy::KIND,
        Mapping::KIND,
        Plan::KIND,
        Item::KIND,
        EngineRecord::KIND,
    ];
    let kind = KINDS.iter().find(|known| **known == kind).ok_or_else(|| {
        Fault::invalid(
            "kind",
            format!("no document of kind `{kind}` is written by a job"),
        )
    })?;
    Ok(Change::Put {
        key: key.to_owned(),
        kind,
        body,
        expect: Expect::Any,
    })
}
