//! `siterecovery_drill_schedule`: drills that start by themselves, are cleaned up, and tell webhooks how they went.
//!
//! A webhook's address is often its only secret: it is write-only, and the service shows scheme and host only. These are
//! planned too, so that a webhook that is added, removed or moved shows in a plan without a version.

use arm_client::Method;
use arm_model::drill_schedule::{
    ALWAYS, DAYS, DEFAULT_KEEP_MINUTES, DrillScheduleProperties, MAX_HOURS, MAX_KEEP_MINUTES,
    MAX_URL, MAX_WEBHOOKS, ON_FAILURE, is_webhook, minute_of_day, shortened,
};
use arm_model::{
    ArmId, DrillScheduleId, PlanId, ProtectedItemId, Resource as Answer, VaultId, validate,
};
use serde_json::{Value as Json, json};
use tf_provider::{
    Attribute, AttributePath, Change, Diagnostics, Object, Plan, Schema, Type, Value,
};

use super::site::{parse_vault_id, vault_id};
use crate::Session;
use crate::errors::Fields;
use crate::fields;
use crate::plain::{Plain, Removal};

const PLAN: &str = "recovery_plan_id";
const VM: &str = "protected_vm_id";
const HOOKS: &str = "webhooks_wo";
const HOOKS_VERSION: &str = "webhooks_wo_version";
const HOSTS: &str = "webhook_hosts";
const EVERY: &str = "every_hours";

/// The resource.
pub(crate) struct DrillSchedule;

impl Plain for DrillSchedule {
    const TYPE: &'static str = "siterecovery_drill_schedule";
    const WHAT: &'static str = "drill schedule";
    const FIELDS: Fields = &[
        ("name", "name"),
        ("targetId", PLAN),
        ("days", "days"),
        ("time", "time"),
        ("everyHours", EVERY),
        ("keepForMinutes", "keep_for_minutes"),
        ("webhooks", HOOKS),
        ("notify", "notify"),
    ];
    const KEYS: &'static [&'static str] = &["name", "recovery_vault_id"];
    const REMOVAL: Removal = Removal::Delete;
    type Properties = DrillScheduleProperties;
    type Id = DrillScheduleId;

    fn schema() -> Schema {
        let number = |most: u32| Attribute::number().optional().whole_in(1..=i64::from(most));
        Schema::new()
            .describe(
                "Drills that start by themselves: a test failover of a recovery plan, or of one protected VM, from the newest points and isolated, \
                 whose VMs are removed after a while. Webhooks are told of drills that failed or were skipped, or of all. \
                 Write-only arguments need Terraform 1.11.",
            )
            .attribute("name", fields::name("schedule", validate::resource_name))
            .attribute("recovery_vault_id", vault_id())
            .attribute(
                PLAN,
                fields::arm_id::<PlanId>("a recovery plan")
                    .optional()
                    .describe("Id of the plan. Give this or `protected_vm_id`."),
            )
            .attribute(
                VM,
                fields::arm_id::<ProtectedItemId>("a protected VM")
                    .optional()
                    .describe("Id of the protected VM. Give this or `recovery_plan_id`."),
            )
            .attribute(
                "days",
                Attribute::set(Type::String)
                    .optional()
                    .describe("Days of the week, such as `Sunday`, in UTC. Give this and `time`, or `every_hours`."),
            )
            .attribute(
                "time",
                Attribute::string()
                    .optional()
                    .check(|value| match value.as_str().map(minute_of_day) {
                        Some(None) => Err("must be a time of day such as 02:30, in UTC".to_owned()),
                        _ => Ok(()),
                    })
                    .describe("Time of day, such as `02:30`, in UTC."),
            )
            .attribute(
                EVERY,
                number(MAX_HOURS).describe(format!(
                    "Hours from one drill to the next, in place of `days` and `time`: 1 to {MAX_HOURS}, counted from the creation of the schedule \
                     or the last change of its rule."
                )),
            )
            .attribute(
                "keep_for_minutes",
                number(MAX_KEEP_MINUTES)
                    .default(i64::from(DEFAULT_KEEP_MINUTES))
                    .describe(format!(
                        "The test VMs are removed so many minutes after the drill: 1 to {MAX_KEEP_MINUTES}. Default: {DEFAULT_KEEP_MINUTES}."
                    )),
            )
            .attribute(
                HOOKS,
                Attribute::list(Type::String).optional().sensitive().write_only().describe(format!(
                    "At most {MAX_WEBHOOKS} `https://` addresses that take a POST with verdict, job and address of the report. Write-only: neither plan \
                     nor state holds them. A webhook that is added, removed or moved to another host is seen by its host; for any other change \
                     change `{HOOKS_VERSION}` too."
                )),
            )
            .attribute(
                HOOKS_VERSION,
                Attribute::number().optional().describe(format!(
                    "Any number; change it together with `{HOOKS}`, whose changes Terraform can't see."
                )),
            )
            .attribute(
                HOSTS,
                Attribute::list(Type::String)
                    .computed()
                    .describe("Scheme and host of each webhook, such as `https://hooks.example.com/…`."),
            )
            .attribute(
                "notify",
                Attribute::string()
                    .optional()
                    .default(ON_FAILURE)
                    .one_of(&[ON_FAILURE, ALWAYS])
                    .describe("Which drills webhooks are told of: `OnFailure` (the default; failed and skipped ones) or `Always`."),
            )
            .attribute(
                "enabled",
                Attribute::bool().optional().default(true).describe(
                    "`false`: no more drills start; the test VMs of the last one are still removed. Default: `true`.",
                ),
            )
    }

    fn id(_session: &Session, object: &Object) -> Result<DrillScheduleId, Diagnostics> {
        Ok(parse_vault_id(object)?.drill_schedule(object.require_str("name")?))
    }

    fn body(object: &Object) -> Json {
        let mut properties = json!({
            "targetId": object.str(PLAN).or_else(|| object.str(VM)),
            "keepForMinutes": object.u64("keep_for_minutes"),
            "notify": object.str("notify"),
            "enabled": object.bool("enabled"),
        });
        if let Some(hours) = object.u64(EVERY) {
            properties["everyHours"] = json!(hours);
        } else {
            properties["days"] = json!(object.strings("days"));
            properties["time"] = json!(object.str("time"));
        }
        json!({ "properties": properties })
    }

    fn add_secrets(config: &Object, body: &mut Json) {
        body["properties"]["webhooks"] = json!(config.strings(HOOKS));
    }

    fn foresee(plan: &mut Plan) {
        if plan.config.get(HOOKS).is_wholly_known() {
            let hosts = plan.config.strings(HOOKS);
            let hosts = Value::list(hosts.iter().map(|url| shortened(url)));
            plan.planned.set(HOSTS, hosts);
        } else if plan.prior.is_none() || plan.has_changes() {
            // Values of ephemeral resources are not known before apply. Whatever else changes sends them too, and only the
            // service's answer tells then which hosts they have; alone, the version tells of their changes.
            plan.planned.set(HOSTS, Value::unknown());
        }
    }

    fn change(change: &Change) -> Option<(Method, Json)> {
        let changeable = [
            PLAN,
            VM,
            "days",
            "time",
            EVERY,
            "keep_for_minutes",
            HOOKS_VERSION,
            HOSTS,
            "notify",
            "enabled",
        ];
        if !changeable.iter().any(|name| change.changed(name)) {
            return None;
        }
        let mut body = Self::body(&change.planned);
        Self::add_secrets(&change.config, &mut body);
        Some((Method::Put, body))
    }

    fn fill(id: &DrillScheduleId, answer: &Answer<DrillScheduleProperties>, object: &mut Object) {
        let properties = &answer.properties;
        object.set("name", id.name());
        object.set(
            "recovery_vault_id",
            VaultId::of(id).map(|vault| vault.to_string()),
        );
        let (of, other) = if PlanId::parse(&properties.target_id).is_ok() {
            (PLAN, VM)
        } else {
            (VM, PLAN)
        };
        object.set(of, properties.target_id.as_str());
        object.set(other, Value::Null);
        let days = match properties.days.as_slice() {
            [] => Value::Null,
            days => Value::set(days.to_vec()),
        };
        object.set("days", days);
        object.set("time", properties.time.as_deref());
        object.set(EVERY, properties.every_hours);
        object.set("keep_for_minutes", properties.keep_for_minutes);
        object.set(HOSTS, Value::list(properties.webhooks.clone()));
        object.set("notify", properties.notify.as_str());
        object.set("enabled", properties.enabled);
    }

    fn validate(config: &Object, report: &mut Diagnostics) {
        check_target(config, report);
        check_rule(config, report);
        check_webhooks(config, report);
    }
}

fn check_target(config: &Object, report: &mut Diagnostics) {
    let title = "A VM or a plan";
    match (config.is_null(PLAN), config.is_null(VM)) {
        (true, true) => {
            report.push_error(PLAN, title, "Give recovery_plan_id or protected_vm_id.");
        }
        (false, false) => report.push_error(
            VM,
            title,
            "Give recovery_plan_id or protected_vm_id, not both.",
        ),
        _ => {}
    }
    let vault = config
        .str("recovery_vault_id")
        .and_then(|id| VaultId::parse(id).ok());
    for name in [PLAN, VM] {
        let of = config.str(name).and_then(|id| ArmId::parse(id).ok());
        let of = of.and_then(|id| VaultId::of(&id));
        if let (Some(vault), Some(of)) = (&vault, of)
            && *vault != of
        {
            report.push_error(
                name,
                "It belongs to another vault",
                format!(
                    "A schedule drills what its own vault {vault} protects; this belongs to {of}."
                ),
            );
        }
    }
}

fn check_rule(config: &Object, report: &mut Diagnostics) {
    let weekly = ["days", "time"].map(|name| !config.is_null(name));
    match (weekly, !config.is_null(EVERY)) {
        ([false, false], false) => {
            report.push_error(EVERY, "When?", "Give days and time, or every_hours.");
        }
        ([true, _] | [_, true], true) => report.push_error(
            EVERY,
            "Two rules",
            "Give days and time, or every_hours, and not both.",
        ),
        ([true, false], false) => {
            report.push_error(
                "days",
                "At what time?",
                "days needs time, such as \"02:30\".",
            );
        }
        ([false, true], false) => report.push_error(
            "time",
            "On which days?",
            "time needs days, such as [\"Sunday\"].",
        ),
        _ => {}
    }
    if config
        .get("days")
        .as_elements()
        .is_some_and(<[_]>::is_empty)
    {
        report.push_error("days", "No day", "Name at least one day of the week.");
    }
    for day in config.strings("days") {
        if !DAYS.contains(&day.as_str()) {
            report.push_error(
                "days",
                "No day of the week",
                format!("{day:?} is none of {}.", DAYS.join(", ")),
            );
        }
    }
}

/// Says nothing of what an address is: a plan's output is read by many.
fn check_webhooks(config: &Object, report: &mut Diagnostics) {
    let hooks = config.elements(HOOKS);
    if hooks.len() > MAX_WEBHOOKS {
        report.push_error(
            HOOKS,
            "Too many webhooks",
            format!(
                "There are {}, and {MAX_WEBHOOKS} are possible.",
                hooks.len()
            ),
        );
    }
    for (index, hook) in hooks.iter().enumerate() {
        if hook.as_str().is_some_and(|url| !is_webhook(url)) {
            report.push_error(
                AttributePath::new(HOOKS).index(index),
                "No address for a webhook",
                format!(
                    "It is an https:// address of up to {MAX_URL} characters without user and password; http:// only on the orchestrator itself."
                ),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VAULT: &str =
        "/subscriptions/s/resourceGroups/g/providers/Microsoft.RecoveryServices/vaults/v";

    fn fine() -> Object {
        Object::new()
            .with("recovery_vault_id", VAULT)
            .with(PLAN, format!("{VAULT}/replicationRecoveryPlans/shop"))
            .with("days", Value::set(["Sunday"]))
            .with("time", "02:30")
    }

    fn problems(config: &Object) -> Vec<String> {
        let mut report = Diagnostics::new();
        DrillSchedule::validate(config, &mut report);
        report.iter().map(|d| d.attribute.to_string()).collect()
    }

    #[test]
    fn a_schedule_has_one_target_of_its_vault_and_one_rule() {
        assert_eq!(problems(&fine()), Vec::<String>::new());
        for (name, value, at) in [
            (PLAN, Value::Null, PLAN),
            (VM, Value::from("x"), VM),
            ("recovery_vault_id", Value::from(format!("{VAULT}2")), PLAN),
            ("time", Value::Null, "days"),
            ("days", Value::Null, "time"),
            ("days", Value::set(Vec::<String>::new()), "days"),
            ("days", Value::set(["Funday"]), "days"),
            (EVERY, Value::from(24), EVERY),
        ] {
            assert_eq!(problems(&fine().with(name, value)), [at], "{name}");
        }
        let open = fine()
            .with("days", Value::unknown())
            .with(PLAN, Value::unknown());
        assert_eq!(problems(&open), Vec::<String>::new());
    }

    #[test]
    fn a_bad_webhook_is_pointed_at_and_never_shown() {
        let secret = "http://hooks.example.com/TOP";
        let config = fine().with(HOOKS, Value::list(["https://hooks.example.com/a", secret]));
        let mut report = Diagnostics::new();
        DrillSchedule::validate(&config, &mut report);
        assert_eq!(problems(&config), ["webhooks_wo[1]"]);
        assert!(!report.to_string().contains("TOP"), "{report}");
        let many = vec!["https://hooks.example.com/a"; MAX_WEBHOOKS + 1];
        assert_eq!(problems(&fine().with(HOOKS, Value::list(many))), [HOOKS]);
    }

    #[test]
    fn a_plan_foresees_the_hosts_and_asks_for_no_secret() {
        let mut plan = Plan {
            config: fine().with(HOOKS, Value::list(["https://hooks.example.com/TOP"])),
            planned: fine(),
            ..Plan::default()
        };
        DrillSchedule::foresee(&mut plan);
        assert_eq!(plan.planned.strings(HOSTS), ["https://hooks.example.com/…"]);
        assert!(!format!("{:?}", plan.planned).contains("TOP"));
        // An address that only apply knows changes nothing until its version, or anything else, does.
        plan.config.set(HOOKS, Value::unknown());
        let prior = plan.planned.clone();
        plan.prior = Some(prior.clone());
        DrillSchedule::foresee(&mut plan);
        assert_eq!(plan.planned, prior);
        for (name, value) in [(HOOKS_VERSION, 2), ("keep_for_minutes", 5)] {
            plan.planned = prior.clone().with(name, value);
            DrillSchedule::foresee(&mut plan);
            assert!(plan.planned.is_unknown(HOSTS), "{name}");
        }
    }
}
