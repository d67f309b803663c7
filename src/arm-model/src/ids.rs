//! Typed ids of the resources of this product, each built from its parent's.
//!
//! ```text
//!  ResourceGroupId ─┬─ StorageAccountId
//!                   ├─ VirtualNetworkId
//!                   └─ VaultId ─┬─ PolicyId, PlanId, JobId, DrillScheduleId
//!                               └─ FabricId ─┬─ ServicesProviderId
//!                                            ├─ NetworkId ── NetworkMappingId
//!                                            └─ ContainerId ─┬─ MappingId, ProtectableItemId
//!                                                            └─ ProtectedItemId ── RecoveryPointId
//! ```

use std::fmt;
use std::ops::Deref;

use serde::{Deserialize, Deserializer, Serialize};

use crate::id::{ArmId, IdError};

/// Namespace of vaults and all below.
pub const RECOVERY_SERVICES: &str = "Microsoft.RecoveryServices";
/// Namespace of storage accounts.
pub const STORAGE: &str = "Microsoft.Storage";
/// Namespace of virtual networks.
pub const NETWORK: &str = "Microsoft.Network";

macro_rules! typed_id {
    ($(#[$doc:meta])* $name:ident, $namespace:expr, [$($kind:literal),+], $refusal:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $name(ArmId);

        impl $name {
            /// Types below the namespace, outermost first.
            pub const KINDS: &'static [&'static str] = &[$($kind),+];

            /// Reads the id of exactly this type.
            ///
            /// # Errors
            /// When the text is no id or one of another type.
            pub fn parse(text: &str) -> Result<Self, IdError> {
                Self::try_from(ArmId::parse(text)?)
            }

            /// The ancestor (or self) of this type of an id below it.
            #[must_use]
            pub fn of(id: &ArmId) -> Option<Self> {
                Self::try_from(id.ancestor(Self::KINDS.len())?).ok()
            }

            /// The untyped id.
            #[must_use]
            pub fn as_arm(&self) -> &ArmId {
                &self.0
            }
        }

        impl TryFrom<ArmId> for $name {
            type Error = IdError;

            fn try_from(id: ArmId) -> Result<Self, IdError> {
                if id.resource_group().is_some() && id.is_of($namespace, Self::KINDS) {
                    Ok(Self(id))
                } else {
                    Err(id.refusal($refusal))
                }
            }
        }

        impl From<$name> for ArmId {
            fn from(id: $name) -> Self {
                id.0
            }
        }

        impl Deref for $name {
            type Target = ArmId;

            fn deref(&self) -> &ArmId {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl std::str::FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                Self::parse(text)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Self::try_from(ArmId::deserialize(deserializer)?).map_err(serde::de::Error::custom)
            }
        }
    };
}

typed_id!(
    /// A Recovery Services vault.
    VaultId, RECOVERY_SERVICES, ["vaults"], "not the id of a vault");
typed_id!(
    /// A replication policy.
    PolicyId, RECOVERY_SERVICES, ["vaults", "replicationPolicies"], "not the id of a replication policy");
typed_id!(
    /// A recovery plan.
    PlanId, RECOVERY_SERVICES, ["vaults", "replicationRecoveryPlans"], "not the id of a recovery plan");
typed_id!(
    /// A job.
    JobId, RECOVERY_SERVICES, ["vaults", "replicationJobs"], "not the id of a job");
typed_id!(
    /// Extension: a schedule of drills.
    DrillScheduleId, RECOVERY_SERVICES, ["vaults", "drillSchedules"], "not the id of a schedule of drills");
typed_id!(
    /// A fabric: the Hyper-V site.
    FabricId, RECOVERY_SERVICES, ["vaults", "replicationFabrics"], "not the id of a Hyper-V site");
typed_id!(
    /// A recovery services provider: one registered host.
    ServicesProviderId, RECOVERY_SERVICES,
    ["vaults", "replicationFabrics", "replicationRecoveryServicesProviders"], "not the id of a registered host");
typed_id!(
    /// A network of a site: a virtual switch of its hosts.
    NetworkId, RECOVERY_SERVICES,
    ["vaults", "replicationFabrics", "replicationNetworks"], "not the id of a site's network");
typed_id!(
    /// What a site's network is mapped to.
    NetworkMappingId, RECOVERY_SERVICES,
    ["vaults", "replicationFabrics", "replicationNetworks", "replicationNetworkMappings"],
    "not the id of a network mapping");
typed_id!(
    /// A protection container: exactly one per site.
    ContainerId, RECOVERY_SERVICES,
    ["vaults", "replicationFabrics", "replicationProtectionContainers"], "not the id of a protection container");
typed_id!(
    /// The association of a policy with a container.
    MappingId, RECOVERY_SERVICES,
    ["vaults", "replicationFabrics", "replicationProtectionContainers", "replicationProtectionContainerMappings"],
    "not the id of a protection container mapping");
typed_id!(
    /// A VM that can be protected.
    ProtectableItemId, RECOVERY_SERVICES,
    ["vaults", "replicationFabrics", "replicationProtectionContainers", "replicationProtectableItems"],
    "not the id of a protectable item");
typed_id!(
    /// A VM that is protected.
    ProtectedItemId, RECOVERY_SERVICES,
    ["vaults", "replicationFabrics", "replicationProtectionContainers", "replicationProtectedItems"],
    "not the id of a protected item");
typed_id!(
    /// A recovery point of a protected VM.
    RecoveryPointId, RECOVERY_SERVICES,
    ["vaults", "replicationFabrics", "replicationProtectionContainers", "replicationProtectedItems", "recoveryPoints"],
    "not the id of a recovery point");
typed_id!(
    /// A storage account.
    StorageAccountId, STORAGE, ["storageAccounts"], "not the id of a storage account");
typed_id!(
    /// A virtual network.
    VirtualNetworkId, NETWORK, ["virtualNetworks"], "not the id of a virtual network");

/// A resource group.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize)]
#[serde(transparent)]
pub struct ResourceGroupId(ArmId);

// === impl ResourceGroupId ===

impl ResourceGroupId {
    /// Builds the id.
    #[must_use]
    pub fn new(subscription: &str, name: &str) -> Self {
        Self(ArmId::group(subscription, name))
    }

    /// Reads the id of a resource group.
    ///
    /// # Errors
    /// When the text is no id or one of something else.
    pub fn parse(text: &str) -> Result<Self, IdError> {
        let id = ArmId::parse(text)?;
        if id.resource_group().is_some() && id.namespace().is_none() {
            Ok(Self(id))
        } else {
            Err(id.refusal("not the id of a resource group"))
        }
    }

    /// The untyped id.
    #[must_use]
    pub fn as_arm(&self) -> &ArmId {
        &self.0
    }

    /// A vault in this group.
    #[must_use]
    pub fn vault(&self, name: &str) -> VaultId {
        VaultId::new(self.0.subscription(), self.0.name(), name)
    }

    /// A storage account in this group.
    #[must_use]
    pub fn storage_account(&self, name: &str) -> StorageAccountId {
        StorageAccountId::new(self.0.subscription(), self.0.name(), name)
    }

    /// A virtual network in this group.
    #[must_use]
    pub fn virtual_network(&self, name: &str) -> VirtualNetworkId {
        VirtualNetworkId::new(self.0.subscription(), self.0.name(), name)
    }
}

impl fmt::Display for ResourceGroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

// === builders ===

impl VaultId {
    /// A vault in a resource group.
    #[must_use]
    pub fn new(subscription: &str, resource_group: &str, name: &str) -> Self {
        Self(ArmId::in_group(
            subscription,
            resource_group,
            RECOVERY_SERVICES,
            "vaults",
            name,
        ))
    }

    /// A Hyper-V site of this vault.
    #[must_use]
    pub fn fabric(&self, name: &str) -> FabricId {
        FabricId(self.0.child("replicationFabrics", name))
    }

    /// A policy of this vault.
    #[must_use]
    pub fn policy(&self, name: &str) -> PolicyId {
        PolicyId(self.0.child("replicationPolicies", name))
    }

    /// A recovery plan of this vault.
    #[must_use]
    pub fn plan(&self, name: &str) -> PlanId {
        PlanId(self.0.child("replicationRecoveryPlans", name))
    }

    /// A schedule of drills of this vault.
    #[must_use]
    pub fn drill_schedule(&self, name: &str) -> DrillScheduleId {
        DrillScheduleId(self.0.child("drillSchedules", name))
    }

    /// A job of this vault.
    #[must_use]
    pub fn job(&self, name: &str) -> JobId {
        JobId(self.0.child("replicationJobs", name))
    }
}

impl FabricId {
    /// A registered host of this site.
    #[must_use]
    pub fn provider(&self, name: &str) -> ServicesProviderId {
        ServicesProviderId(self.0.child("replicationRecoveryServicesProviders", name))
    }

    /// A network of this site.
    #[must_use]
    pub fn network(&self, name: &str) -> NetworkId {
        NetworkId(self.0.child("replicationNetworks", name))
    }

    /// A container of this site.
    #[must_use]
    pub fn container(&self, name: &str) -> ContainerId {
        ContainerId(self.0.child("replicationProtectionContainers", name))
    }
}

impl NetworkId {
    /// A mapping of this network.
    #[must_use]
    pub fn mapping(&self, name: &str) -> NetworkMappingId {
        NetworkMappingId(self.0.child("replicationNetworkMappings", name))
    }
}

impl ContainerId {
    /// A policy association of this container.
    #[must_use]
    pub fn mapping(&self, name: &str) -> MappingId {
        MappingId(self.0.child("replicationProtectionContainerMappings", name))
    }

    /// A VM of this container that can be protected.
    #[must_use]
    pub fn protectable_item(&self, name: &str) -> ProtectableItemId {
        ProtectableItemId(self.0.child("replicationProtectableItems", name))
    }

    /// A protected VM of this container.
    #[must_use]
    pub fn protected_item(&self, name: &str) -> ProtectedItemId {
        ProtectedItemId(self.0.child("replicationProtectedItems", name))
    }
}

impl ProtectedItemId {
    /// A recovery point of this item.
    #[must_use]
    pub fn recovery_point(&self, name: &str) -> RecoveryPointId {
        RecoveryPointId(self.0.child("recoveryPoints", name))
    }
}

impl StorageAccountId {
    /// A storage account in a resource group.
    #[must_use]
    pub fn new(subscription: &str, resource_group: &str, name: &str) -> Self {
        Self(ArmId::in_group(
            subscription,
            resource_group,
            STORAGE,
            "storageAccounts",
            name,
        ))
    }
}

impl VirtualNetworkId {
    /// A virtual network in a resource group.
    #[must_use]
    pub fn new(subscription: &str, resource_group: &str, name: &str) -> Self {
        Self(ArmId::in_group(
            subscription,
            resource_group,
            NETWORK,
            "virtualNetworks",
            name,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_ids_are_read_back_as_the_same_type() {
        let item = VaultId::new("s", "g", "v")
            .fabric("f")
            .container("c")
            .protected_item("i");
        let point = item.recovery_point("p");
        assert_eq!(
            RecoveryPointId::parse(&point.as_str().to_uppercase()).expect("own id"),
            point
        );
        assert_eq!(ProtectedItemId::of(&point), Some(item));
        assert_eq!(VaultId::of(&point), Some(VaultId::new("S", "G", "V")));
    }

    #[test]
    fn an_id_of_another_type_is_refused() {
        let policy = VaultId::new("s", "g", "v").policy("p");
        assert!(FabricId::parse(policy.as_str()).is_err());
        assert!(ResourceGroupId::parse(policy.as_str()).is_err());
        assert!(ResourceGroupId::parse("/subscriptions/s/resourceGroups/g").is_ok());
    }
}
