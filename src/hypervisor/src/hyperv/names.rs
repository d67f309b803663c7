//! Names of Microsoft's that the driver needs, and paths and texts that WMI writes in its own way.

use uuid::Uuid;

/// `Msvm_VirtualSystemSettingData.VirtualSystemType`.
pub(super) const REALIZED: &str = "Microsoft:Hyper-V:System:Realized";
pub(super) const USER_CHECKPOINT: &str = "Microsoft:Hyper-V:Snapshot:Realized";
pub(super) const RECOVERY_CHECKPOINT: &str = "Microsoft:Hyper-V:Snapshot:Recovery";
/// `ResourceSubType`.
pub(super) const HARD_DISK: &str = "Microsoft:Hyper-V:Virtual Hard Disk";
pub(super) const DISK_DRIVE: &str = "Microsoft:Hyper-V:Synthetic Disk Drive";
pub(super) const PASS_THROUGH: &str = "Microsoft:Hyper-V:Physical Disk Drive";
pub(super) const IDE_CONTROLLER: &str = "Microsoft:Hyper-V:Emulated IDE Controller";
pub(super) const SCSI_CONTROLLER: &str = "Microsoft:Hyper-V:Synthetic SCSI Controller";
pub(super) const ETHERNET_PORT: &str = "Microsoft:Hyper-V:Synthetic Ethernet Port";
pub(super) const ETHERNET_CONNECTION: &str = "Microsoft:Hyper-V:Ethernet Connection";

/// Classes.
pub(super) const COMPUTER: &str = "Msvm_ComputerSystem";
pub(super) const SETTINGS: &str = "Msvm_VirtualSystemSettingData";
pub(super) const STORAGE: &str = "Msvm_StorageAllocationSettingData";
pub(super) const RESOURCE: &str = "Msvm_ResourceAllocationSettingData";
pub(super) const PORT: &str = "Msvm_SyntheticEthernetPortSettingData";
pub(super) const CONNECTION: &str = "Msvm_EthernetPortAllocationSettingData";
pub(super) const SWITCH: &str = "Msvm_VirtualEthernetSwitch";
pub(super) const REFERENCE_POINT: &str = "Msvm_VirtualSystemReferencePoint";

/// The key `InstanceID` of the object at a path such as
/// `\\HOST\root\virtualization\v2:Class.InstanceID="Microsoft:GUID\\0\\D"`; backslashes and quotes are written twice there.
pub(super) fn instance_id(path: &str) -> Option<String> {
    let (_, rest) = path.split_once("InstanceID=\"")?;
    let mut id = String::new();
    let mut letters = rest.chars();
    loop {
        match letters.next()? {
            '"' => return Some(id),
            '\\' => id.push(letters.next()?),
            letter => id.push(letter),
        }
    }
}

/// The part of a resource's id that is the same for a VM and for its checkpoints: all behind the settings' own GUID.
pub(super) fn resource_tail(id: &str) -> &str {
    id.split_once('\\').map_or(id, |(_, tail)| tail)
}

/// The class in a path such as `\\HOST\root\virtualization\v2:Class.Key="..."`.
#[cfg(any(windows, test))]
pub(super) fn class_of(path: &str) -> &str {
    let local = match path.strip_prefix("\\\\") {
        Some(_) => path.split_once(':').map_or(path, |(_, local)| local),
        None => path,
    };
    local.split(['.', '=']).next().unwrap_or(local)
}

/// The value of `name` out of key-value pairs, each the XML text of an `Msvm_KvpExchangeDataItem`.
pub(super) fn pair(items: &[String], name: &str) -> Option<String> {
    items
        .iter()
        .find(|item| property(item, "Name").as_deref() == Some(name))
        .and_then(|item| property(item, "Data"))
}

/// `<PROPERTY NAME="name" ...><VALUE>text</VALUE></PROPERTY>`
fn property(xml: &str, name: &str) -> Option<String> {
    let begin = xml.find(&format!("NAME=\"{name}\""))?;
    let own = xml.get(begin..)?;
    let own = own.get(..own.find("</PROPERTY>")?)?;
    let (_, value) = own.split_once("<VALUE>")?;
    let (value, _) = value.split_once("</VALUE>")?;
    // The ampersand last, so that nothing is read twice.
    let text = value
        .replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&quot;", "\"")
        .replace("&apos;", "'")
        .replace("&amp;", "&");
    Some(text)
}

/// "00155D012AFE" as "00:15:5D:01:2A:FE"; anything else as it is.
pub(super) fn with_colons(mac: &str) -> String {
    if mac.len() != 12 || !mac.is_ascii() {
        return mac.to_owned();
    }
    let octets: Vec<&str> = (0..12)
        .step_by(2)
        .filter_map(|at| mac.get(at..at + 2))
        .collect();
    octets.join(":")
}

/// Major and minor number of a version such as "9.0"; nothing readable is version 0.
pub(super) fn version(text: &str) -> (u32, u32) {
    let mut parts = text.split('.').map(|part| part.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

/// What stands in `Notes` of a VM that this driver made: Hyper-V gives VMs GUIDs of its own, this one is ours.
pub(super) const MADE_AS: &str = "site-recovery vm ";
/// And its folder.
pub(super) const MADE_IN: &str = "site-recovery folder ";
/// And that it is not finished.
pub(super) const UNFINISHED: &str = "site-recovery unfinished";

/// What follows `prefix` in one of the notes' lines. Lines, not elements: it is not documented that several elements are kept apart.
pub(super) fn note<'a>(notes: &'a [String], prefix: &str) -> Option<&'a str> {
    let mut lines = notes.iter().flat_map(|note| note.lines());
    lines.find_map(|line| line.strip_prefix(prefix))
}

/// The id under which a VM is known to us.
pub(super) fn made_as(notes: &[String]) -> Option<Uuid> {
    note(notes, MADE_AS).and_then(|id| id.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_id_comes_out_of_a_path_as_it_is_in_the_object() {
        let path = r#"\\HV1\root\virtualization\v2:Msvm_ResourceAllocationSettingData.InstanceID="Microsoft:A\\B\\0\\1\\D""#;
        assert_eq!(instance_id(path).as_deref(), Some(r"Microsoft:A\B\0\1\D"));
        assert_eq!(resource_tail(r"Microsoft:A\B\0\1\D"), r"B\0\1\D");
        assert_eq!(instance_id("Msvm_X.InstanceID=\"cut"), None);
        assert_eq!(instance_id("nothing"), None);
        assert_eq!(class_of(path), "Msvm_ResourceAllocationSettingData");
        assert_eq!(class_of("Msvm_X.InstanceID=\"a:b.c\""), "Msvm_X");
        assert_eq!(class_of("Msvm_X"), "Msvm_X");
    }

    #[test]
    fn key_value_pairs_are_read_with_their_entities() {
        let item = |name: &str, data: &str| {
            format!(
                "<INSTANCE CLASSNAME=\"Msvm_KvpExchangeDataItem\"><PROPERTY NAME=\"Caption\" TYPE=\"string\"></PROPERTY>\
                 <PROPERTY NAME=\"Data\" TYPE=\"string\"><VALUE>{data}</VALUE></PROPERTY>\
                 <PROPERTY NAME=\"Name\" TYPE=\"string\"><VALUE>{name}</VALUE></PROPERTY></INSTANCE>"
            )
        };
        let items = [
            item("OSVersion", "10.0"),
            item("OSName", "A &amp;lt; B &lt;C&gt;"),
        ];
        assert_eq!(pair(&items, "OSName").as_deref(), Some("A &lt; B <C>"));
        assert_eq!(pair(&items, "OSVersion").as_deref(), Some("10.0"));
        assert_eq!(pair(&items, "Missing"), None);
        assert_eq!(
            pair(
                &["<PROPERTY NAME=\"Name\"><VALUE>OSName".to_owned()],
                "OSName"
            ),
            None
        );
    }

    #[test]
    fn addresses_and_versions_are_read_and_oddities_do_no_harm() {
        assert_eq!(with_colons("00155D012AFE"), "00:15:5D:01:2A:FE");
        assert_eq!(with_colons("ä"), "ä");
        assert!(version("6.2") >= (6, 2) && version("10.0") > (6, 2) && version("5.0") < (6, 2));
        assert_eq!(version("what"), (0, 0));
    }
}
