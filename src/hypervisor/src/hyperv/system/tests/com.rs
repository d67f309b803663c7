//! COM, WMI and `VARIANT`s, as Wine has them.

use windows::Win32::System::Wmi::{
    CIM_BOOLEAN, CIM_FLAG_ARRAY, CIM_SINT8, CIM_SINT16, CIM_SINT32, CIM_SINT64, CIM_STRING,
    CIM_UINT8, CIM_UINT16, CIM_UINT32, CIM_UINT64,
};

use super::super::super::host::{CIMV2, NO_NAMESPACE, NOT_FOUND, VIRTUALIZATION, Value};
use super::super::LocalHost;
use super::super::variant::{read, write};
use super::super::wmi::Namespace;

/// `HKEY_LOCAL_MACHINE`: a number of 32 bits without a sign whose first bit is set.
const LOCAL_MACHINE: i64 = 0x8000_0002;

fn there_and_back(value: &Value, cim: i32) -> Value {
    read(&write(value, cim).unwrap()).unwrap()
}

#[test]
#[ignore = "make windows runs it"]
fn values_come_out_of_a_variant_as_they_went_in() {
    let text = |text: &str| Value::Text(text.to_owned());
    let texts = |all: &[&str]| Value::Texts(all.iter().map(|&one| one.to_owned()).collect());
    let same = [
        (Value::Null, CIM_STRING.0),
        (Value::Bool(true), CIM_BOOLEAN.0),
        (Value::Bool(false), CIM_BOOLEAN.0),
        (text("Größe 漢字 𝄞"), CIM_STRING.0),
        (text(""), CIM_STRING.0),
        (Value::Number(255), CIM_UINT8.0),
        (Value::Number(-128), CIM_SINT8.0),
        (Value::Number(-32768), CIM_SINT16.0),
        (Value::Number(65535), CIM_UINT16.0),
        (Value::Number(-2_147_483_648), CIM_SINT32.0),
        (Value::Number(32768), CIM_UINT32.0),
        (
            texts(&["", "Microsoft:A\\B", "漢字 𝄞"]),
            CIM_STRING.0 | CIM_FLAG_ARRAY.0,
        ),
        (texts(&[]), CIM_STRING.0 | CIM_FLAG_ARRAY.0),
    ];
    for (value, cim) in same {
        assert_eq!(there_and_back(&value, cim), value, "of type {cim}");
    }
    // WMI takes numbers of 64 bits as text, and those of 32 without a sign as the same bits with one.
    for (number, cim) in [
        (u64::MAX.cast_signed(), CIM_SINT64.0),
        (5 << 40, CIM_UINT64.0),
    ] {
        let given = there_and_back(&Value::Number(number), cim);
        assert_eq!(given, text(&number.to_string()));
    }
    let bits = there_and_back(&Value::Number(LOCAL_MACHINE), CIM_UINT32.0);
    assert_eq!(bits, Value::Number(LOCAL_MACHINE - (1 << 32)));
    for (number, cim) in [
        (256, CIM_UINT8.0),
        (32768, CIM_SINT16.0),
        (1 << 32, CIM_UINT32.0),
    ] {
        let refused = write(&Value::Number(number), cim).err().unwrap();
        assert!(refused.text.contains("too large"), "{refused}");
    }
}

#[test]
#[ignore = "make windows runs it"]
fn a_host_without_the_role_is_told_by_the_code_that_the_driver_waits_for() {
    let refused = LocalHost::connect().err().unwrap();
    assert_eq!(refused.code, NO_NAMESPACE, "{refused}");
    assert!(refused.text.contains(VIRTUALIZATION), "{refused}");
}

#[test]
#[ignore = "make windows runs it"]
fn objects_that_are_found_have_class_path_and_properties_on_any_thread() {
    let windows = Namespace::connect(CIMV2).unwrap();
    let query = "SELECT * FROM Win32_OperatingSystem";
    // One after the other: Wine's tables are not made for queries at the same time.
    let ask = || std::thread::scope(|scope| scope.spawn(|| windows.query(query)).join());
    assert_eq!(ask().unwrap().unwrap().len(), 1);
    let found = ask().unwrap().unwrap();
    let [system] = found.as_slice() else {
        panic!("{found:?}");
    };
    assert_eq!(system.class, "Win32_OperatingSystem");
    assert!(system.path.contains("Win32_OperatingSystem"), "{system:?}");
    assert!(!system.text("Version").is_empty(), "{system:?}");
    // A number of 32 bits, and one of 64, which comes as text.
    assert!(
        system
            .number("ProductType")
            .is_some_and(|kind| (1..=3).contains(&kind))
    );
    assert!(
        system
            .number("TotalVirtualMemorySize")
            .is_some_and(|size| size > 0)
    );
    let services = windows.query("SELECT * FROM Win32_Service").unwrap();
    assert!(services.len() > 1, "{services:?}");
    let again = windows.object(&services[0].path).unwrap();
    assert_eq!(again.text("Name"), services[0].text("Name"));
    let gone = windows
        .object("Win32_Service.Name=\"SiteRecoveryThatIsNotThere\"")
        .unwrap_err();
    assert_eq!(gone.code, NOT_FOUND, "{gone}");
}

#[test]
#[ignore = "make windows runs it"]
fn a_method_gets_its_arguments_by_name_and_gives_what_comes_out() {
    let registry = Namespace::connect(r"root\default").unwrap();
    let call = |method: &str, key: &str, value: Option<&'static str>| {
        let mut arguments = vec![
            ("hDefKey", Value::Number(LOCAL_MACHINE)),
            ("sSubKeyName", Value::from(key)),
        ];
        arguments.extend(value.map(|value| ("sValueName", Value::from(value))));
        registry.call("StdRegProv", method, &arguments).unwrap()
    };
    let key = r"Software\Microsoft\Windows NT\CurrentVersion";
    let build = call("GetStringValue", key, Some("CurrentBuild"));
    assert_eq!(build.number("ReturnValue"), Some(0), "{build:?}");
    assert!(
        build.number("sValue").is_some_and(|build| build > 0),
        "{build:?}"
    );
    // An array of texts comes out.
    let below = call("EnumKey", r"Software\Microsoft\Windows NT", None);
    assert!(
        below
            .texts("sNames")
            .iter()
            .any(|name| name == "CurrentVersion"),
        "{below:?}"
    );
    // What the method itself refuses is its result, not an error of WMI.
    let missing = call(
        "GetStringValue",
        r"Software\SiteRecoveryThatIsNotThere",
        Some("x"),
    );
    assert_ne!(missing.number("ReturnValue"), Some(0), "{missing:?}");
    let unknown = registry
        .call("StdRegProv", "NoSuchMethod", &[])
        .unwrap_err();
    assert!(unknown.text.contains("NoSuchMethod"), "{unknown}");
}
