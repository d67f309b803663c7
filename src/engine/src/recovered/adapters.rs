//! What the network adapters of a recovered VM are connected to: a private segment of this host, or nothing.
//!
//! ```text
//!  drill      one segment for each virtual switch of the source, of this drill alone
//!  network    one segment for all adapters, shared by the VMs of this host that are in the network
//!  neither    the cable is out
//! ```
//!
//! Promise: no adapter is ever connected to a network of this host, and VMs of two drills never meet. A cable that is out at
//! the source is out here.

use engine_protocol::v1;
use hypervisor::NewNetwork;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::vm_config::NetworkConfig;

/// Segments follow from names, so that every engine, and a repeated try, makes the same.
const SEGMENTS: Uuid = Uuid::from_u128(0x8a1e_3f70_5d2c_4b96_b1d4_7e09_c3a5_5f28);

/// What is decided about a VM's adapters before it is made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Adapters {
    /// Who has the same reaches one another; empty = nobody is connected.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub private_network: String,
    /// Adapters of different virtual switches don't meet.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub switches_apart: bool,
    /// Adapters of the source that the VM does not get.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<String>,
}

impl Adapters {
    /// Nothing is decided: as releases made VMs that knew no segments.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// As a wish has it.
    pub(super) fn of(wish: &v1::RecoveredVm) -> Self {
        Self {
            private_network: wish.private_network.clone(),
            switches_apart: wish.switches_apart,
            left_out: wish.left_out_adapters.clone(),
        }
    }

    /// The adapters of the recovered VM `vm`, of those of its source.
    pub(super) fn networks(&self, vm: Uuid, source: &[NetworkConfig]) -> Vec<NewNetwork> {
        let numbered = source.iter().enumerate();
        numbered
            .filter_map(|(index, adapter)| {
                let id = adapter.id_at(index);
                if self
                    .left_out
                    .iter()
                    .any(|out| out.eq_ignore_ascii_case(&id))
                {
                    return None;
                }
                let segment = self.segment(&adapter.network_name);
                Some(NewNetwork {
                    network_name: None,
                    segment,
                    mac_address: segment.map(|_| mac(vm, &id)),
                })
            })
            .collect()
    }

    fn segment(&self, switch: &str) -> Option<Uuid> {
        if self.private_network.is_empty() || switch.is_empty() {
            return None;
        }
        let switch = if self.switches_apart {
            switch.to_lowercase()
        } else {
            String::new()
        };
        let text = format!("{}\n{switch}", self.private_network.to_lowercase());
        Some(Uuid::new_v5(&SEGMENTS, text.as_bytes()))
    }
}

/// A locally administered address: the source's is not kept (as in Azure), and of 40 bits no two VMs of a segment share them.
fn mac(vm: Uuid, adapter: &str) -> String {
    let [a, b, c, d, e, ..] = Uuid::new_v5(&vm, adapter.as_bytes()).into_bytes();
    format!("02:{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapter(switch: &str) -> NetworkConfig {
        NetworkConfig {
            id: String::new(),
            network_name: switch.to_owned(),
            mac_address: "00:15:5d:00:00:01".to_owned(),
        }
    }

    fn drill(name: &str) -> Adapters {
        Adapters {
            private_network: name.to_owned(),
            switches_apart: true,
            left_out: Vec::new(),
        }
    }

    fn segments(adapters: &Adapters, vm: u128, switches: &[&str]) -> Vec<Option<Uuid>> {
        let source: Vec<_> = switches.iter().copied().map(adapter).collect();
        let networks = adapters.networks(Uuid::from_u128(vm), &source);
        assert!(
            networks
                .iter()
                .all(|network| network.network_name.is_none())
        );
        networks.iter().map(|network| network.segment).collect()
    }

    #[test]
    fn vms_of_one_drill_meet_on_each_switch_and_no_others_do() {
        let one = segments(&drill("one"), 1, &["LAN", "Backup", ""]);
        assert_eq!(
            segments(&drill("one"), 2, &["backup", "lan"]),
            [one[1], one[0]]
        );
        assert!(one[0].is_some() && one[1].is_some() && one[0] != one[1]);
        assert_eq!(one[2], None, "a cable that is out at the source");
        let two = segments(&drill("two"), 1, &["LAN", "Backup"]);
        assert!(two.iter().all(|segment| !one.contains(segment)));
    }

    #[test]
    fn in_a_network_all_adapters_meet_and_without_one_every_cable_is_out() {
        let network = Adapters {
            switches_apart: false,
            ..drill("/subscriptions/s/x")
        };
        let all = segments(&network, 1, &["LAN", "Backup"]);
        assert!(all[0].is_some() && all[0] == all[1]);
        assert_eq!(segments(&Adapters::default(), 1, &["LAN"]), [None]);
    }

    #[test]
    fn an_adapter_that_is_left_out_is_not_made_and_the_others_keep_their_cards() {
        let whole = drill("one").networks(Uuid::nil(), &[adapter("LAN"), adapter("Backup")]);
        let fewer = Adapters {
            left_out: vec!["NIC0".to_owned()],
            ..drill("one")
        };
        let fewer = fewer.networks(Uuid::nil(), &[adapter("LAN"), adapter("Backup")]);
        let [left] = fewer.as_slice() else {
            panic!("{fewer:?}");
        };
        assert_eq!(left.mac_address, whole[1].mac_address);
        assert_ne!(left.mac_address, whole[0].mac_address);
        assert!(left.mac_address.as_deref().unwrap().starts_with("02:"));
    }
}
