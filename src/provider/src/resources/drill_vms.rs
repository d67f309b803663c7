//! The VMs of a drill, as its job tells of them.

use arm_model::test_failover::DrillVm;
use tf_provider::{Attribute, Nesting, Object, Value};

use crate::fields::text_or_null;

/// The computed list of a drill's VMs.
pub(crate) fn attribute() -> Attribute {
    let text = |description: &str| Attribute::string().computed().describe(description);
    Attribute::nested(
        Nesting::List,
        [
            ("name", text("Name of the protected VM.")),
            (
                "recovered_vm_id",
                text("GUID of the recovered VM on its host."),
            ),
            ("recovered_vm_name", text("Name of the recovered VM.")),
            (
                "group",
                Attribute::number()
                    .computed()
                    .describe("Boot group, from 1."),
            ),
            (
                "recovery_point_id",
                text("Id of the recovery point that was used."),
            ),
            ("point_time", text("Instant of that point, ISO 8601.")),
            ("requested_at", text("When the drill was asked for.")),
            ("started_at", text("When the VM was started.")),
            (
                "first_output_at",
                text("When the guest wrote its first line to the console."),
            ),
            (
                "recovery_host",
                text("Name of the host that the VM runs on."),
            ),
            (
                "console_path",
                text("File on that host with the console's output."),
            ),
        ],
    )
    .computed()
    .describe("The recovered VMs, in boot order.")
}

/// The list's value.
pub(crate) fn value(vms: &[DrillVm]) -> Value {
    let mut ordered: Vec<&DrillVm> = vms.iter().collect();
    ordered.sort_by(|a, b| (a.group, &a.friendly_name).cmp(&(b.group, &b.friendly_name)));
    Value::list(ordered.into_iter().map(|vm| {
        Object::new()
            .with("name", vm.friendly_name.as_str())
            .with("recovered_vm_id", text_or_null(Some(&vm.test_vm_name)))
            .with(
                "recovered_vm_name",
                text_or_null(Some(&vm.test_vm_friendly_name)),
            )
            .with("group", vm.group)
            .with(
                "recovery_point_id",
                text_or_null(Some(&vm.recovery_point_id)),
            )
            .with(
                "point_time",
                text_or_null(vm.recovery_point_time.as_deref()),
            )
            .with("requested_at", text_or_null(vm.requested_time.as_deref()))
            .with("started_at", text_or_null(vm.started_time.as_deref()))
            .with(
                "first_output_at",
                text_or_null(vm.first_output_time.as_deref()),
            )
            .with("recovery_host", text_or_null(Some(&vm.recovery_host)))
            .with("console_path", text_or_null(Some(&vm.console_path)))
    }))
}
