//! WMI through COM.
//!
//! All threads are in the process's one multi-threaded apartment, without entering it each: its use is counted up once and
//! never down. So objects may be used from any thread.
#![expect(unsafe_code, reason = "COM interfaces are foreign functions")]

use std::sync::OnceLock;
use std::time::Duration;

use windows::Win32::System::Com::{
    CLSCTX_INPROC_SERVER, CoCreateInstance, CoIncrementMTAUsage, CoSetProxyBlanket, EOAC_NONE,
    RPC_C_AUTHN_LEVEL_PKT_PRIVACY, RPC_C_IMP_LEVEL_IMPERSONATE,
};
use windows::Win32::System::Rpc::{RPC_C_AUTHN_WINNT, RPC_C_AUTHZ_NONE};
use windows::Win32::System::Variant::VARIANT;
use windows::Win32::System::Wmi::{
    IEnumWbemClassObject, IWbemClassObject, IWbemLocator, IWbemObjectTextSrc, IWbemServices,
    WBEM_FLAG_FORWARD_ONLY, WBEM_FLAG_NONSYSTEM_ONLY, WBEM_FLAG_RETURN_IMMEDIATELY,
    WBEM_GENERIC_FLAG_TYPE, WBEM_INFINITE, WMI_OBJ_TEXT_WMI_DTD_2_0, WbemLocator,
    WbemObjectTextSrc,
};
use windows::core::{BSTR, Error, HSTRING, PCWSTR};

use super::super::host::{HostError, Instance, Value};
use super::super::names::class_of;
use super::variant;

const PLAIN: WBEM_GENERIC_FLAG_TYPE = WBEM_GENERIC_FLAG_TYPE(0);
/// `E_UNEXPECTED`
const UNEXPECTED: u32 = 0x8000_FFFF;

/// An object of the multi-threaded apartment.
struct Agile<T>(T);

// SAFETY: objects of the multi-threaded apartment may be used from all of its threads, and all threads are in it, because
// `apartment` keeps it alive and none enters another one.
unsafe impl<T> Send for Agile<T> {}
// SAFETY: as above; such objects order concurrent calls themselves.
unsafe impl<T> Sync for Agile<T> {}

/// A connection to a name space.
pub(super) struct Namespace {
    services: Agile<IWbemServices>,
}

/// A subscription.
pub(super) struct Events(Agile<IEnumWbemClassObject>);

fn apartment() -> Result<(), HostError> {
    static HELD: OnceLock<Result<(), HostError>> = OnceLock::new();
    HELD.get_or_init(|| {
        // SAFETY: no pointers; the cookie is given up on purpose, for the life of the process.
        unsafe { CoIncrementMTAUsage() }
            .map(drop)
            .map_err(|error| host_error("start COM", &error))
    })
    .clone()
}

pub(super) fn host_error(step: &str, error: &Error) -> HostError {
    HostError::new(
        error.code().0.cast_unsigned(),
        format!("{step}: {}", error.message()),
    )
}

fn nothing(step: &str) -> HostError {
    HostError::new(UNEXPECTED, format!("{step}: no object came back"))
}

impl Namespace {
    pub fn connect(namespace: &str) -> Result<Self, HostError> {
        apartment()?;
        let step = format!("connect to {namespace}");
        let failed = |error: Error| host_error(&step, &error);
        // SAFETY: the class and the interface belong together; the apartment is there.
        let locator: IWbemLocator =
            unsafe { CoCreateInstance(&WbemLocator, None, CLSCTX_INPROC_SERVER) }
                .map_err(failed)?;
        let none = BSTR::default();
        // SAFETY: all strings outlive the call.
        let services = unsafe {
            locator.ConnectServer(&BSTR::from(namespace), &none, &none, &none, 0, &none, None)
        }
        .map_err(failed)?;
        // SAFETY: a proxy that was just made, and constants.
        unsafe {
            CoSetProxyBlanket(
                &services,
                RPC_C_AUTHN_WINNT,
                RPC_C_AUTHZ_NONE,
                PCWSTR::null(),
                RPC_C_AUTHN_LEVEL_PKT_PRIVACY,
                RPC_C_IMP_LEVEL_IMPERSONATE,
                None,
                EOAC_NONE,
            )
        }
        .map_err(failed)?;
        Ok(Self {
            services: Agile(services),
        })
    }

    pub fn query(&self, query: &str) -> Result<Vec<Instance>, HostError> {
        let flags = WBEM_FLAG_FORWARD_ONLY | WBEM_FLAG_RETURN_IMMEDIATELY;
        // SAFETY: the strings outlive the call.
        let found = unsafe {
            let language = BSTR::from("WQL");
            self.services
                .0
                .ExecQuery(&language, &BSTR::from(query), flags, None)
        }
        .map_err(|error| host_error(query, &error))?;
        let mut instances = Vec::new();
        while let Some(object) = next(&found, WBEM_INFINITE, query)? {
            instances.push(instance(&object)?);
        }
        Ok(instances)
    }

    pub fn notifications(&self, query: &str) -> Result<Events, HostError> {
        let flags = WBEM_FLAG_FORWARD_ONLY | WBEM_FLAG_RETURN_IMMEDIATELY;
        // SAFETY: the strings outlive the call.
        let events = unsafe {
            let language = BSTR::from("WQL");
            self.services
                .0
                .ExecNotificationQuery(&language, &BSTR::from(query), flags, None)
        };
        events
            .map(|events| Events(Agile(events)))
            .map_err(|error| host_error(query, &error))
    }

    pub fn object(&self, path: &str) -> Result<Instance, HostError> {
        instance(&self.get(path)?)
    }

    fn get(&self, path: &str) -> Result<IWbemClassObject, HostError> {
        let mut object = None;
        // SAFETY: path and result outlive the call.
        unsafe {
            self.services
                .0
                .GetObject(&BSTR::from(path), PLAIN, None, Some(&raw mut object), None)
        }
        .map_err(|error| host_error(&format!("get {path}"), &error))?;
        object.ok_or_else(|| nothing(path))
    }

    pub fn call(
        &self,
        path: &str,
        method: &str,
        arguments: &[(&'static str, Value)],
    ) -> Result<Instance, HostError> {
        let failed = |error: Error| host_error(method, &error);
        let class = self.get(class_of(path))?;
        let mut wanted = None;
        // SAFETY: name and result outlive the call; the out signature is not asked for.
        unsafe {
            class.GetMethod(
                &HSTRING::from(method),
                0,
                &raw mut wanted,
                std::ptr::null_mut(),
            )
        }
        .map_err(failed)?;
        let parameters = match wanted {
            Some(wanted) => {
                // SAFETY: a signature is a class, of which instances can be made.
                let parameters = unsafe { wanted.SpawnInstance(0) }.map_err(failed)?;
                // One that is not given stays at its null.
                for (name, value) in arguments.iter().filter(|(_, value)| *value != Value::Null) {
                    put(&parameters, name, &self.as_text(value)?)?;
                }
                Some(parameters)
            }
            None => None,
        };
        let mut out = None;
        // SAFETY: all strings and objects outlive the call.
        unsafe {
            self.services.0.ExecMethod(
                &BSTR::from(path),
                &BSTR::from(method),
                PLAIN,
                None,
                parameters.as_ref(),
                Some(&raw mut out),
                None,
            )
        }
        .map_err(failed)?;
        // What comes out is no object of a class, and is nowhere.
        properties(&out.ok_or_else(|| nothing(method))?)
    }

    /// Instances as the XML text that methods take.
    fn as_text(&self, value: &Value) -> Result<Value, HostError> {
        Ok(match value {
            Value::Embedded(one) => Value::Text(self.xml(one)?),
            Value::EmbeddedAll(all) => Value::Texts(
                all.iter()
                    .map(|one| self.xml(one))
                    .collect::<Result<_, _>>()?,
            ),
            other => other.clone(),
        })
    }

    fn xml(&self, wish: &Instance) -> Result<String, HostError> {
        let failed = |error: Error| host_error(&format!("write {} as text", wish.class), &error);
        let (object, present) = if wish.path.is_empty() {
            let class = self.get(&wish.class)?;
            // SAFETY: it is a class, of which instances can be made.
            let object = unsafe { class.SpawnInstance(0) }.map_err(failed)?;
            (object, Instance::default())
        } else {
            let object = self.get(&wish.path)?;
            let present = instance(&object)?;
            (object, present)
        };
        for (name, value) in &wish.properties {
            // Of one that is there only what shall change: much of the rest can't be written.
            if present.properties.get(name) != Some(value) {
                put(&object, name, value)?;
            }
        }
        let kind = WMI_OBJ_TEXT_WMI_DTD_2_0.0.cast_unsigned();
        // SAFETY: the class and the interface belong together; the apartment is there since the connection was made.
        let texts: IWbemObjectTextSrc =
            unsafe { CoCreateInstance(&WbemObjectTextSrc, None, CLSCTX_INPROC_SERVER) }
                .map_err(failed)?;
        // SAFETY: the object outlives the call.
        unsafe { texts.GetText(0, &object, kind, None) }
            .map(|text| text.to_string())
            .map_err(failed)
    }
}

impl Events {
    /// Whether there was one within `patience`. All that have come by then count as one.
    pub fn wait(&self, patience: Duration) -> Result<bool, HostError> {
        let step = "wait for an event";
        let milliseconds = i32::try_from(patience.as_millis()).unwrap_or(i32::MAX);
        let mut told = false;
        let mut wait = milliseconds;
        while next(&self.0.0, wait, step)?.is_some() {
            told = true;
            wait = 0;
        }
        Ok(told)
    }
}

fn next(
    found: &IEnumWbemClassObject,
    milliseconds: i32,
    step: &str,
) -> Result<Option<IWbemClassObject>, HostError> {
    let mut objects = [None];
    let mut count = 0;
    // SAFETY: room for one object is there, as the slice says.
    let result = unsafe { found.Next(milliseconds, &mut objects, &raw mut count) };
    // The end and a timeout are no errors.
    result.ok().map_err(|error| host_error(step, &error))?;
    let [object] = objects;
    Ok(object)
}

/// Sets a property, in the width that it has.
fn put(object: &IWbemClassObject, name: &str, value: &Value) -> Result<(), HostError> {
    let failed = |error: Error| host_error(&format!("set {name}"), &error);
    let name_text = HSTRING::from(name);
    let mut present = VARIANT::default();
    let mut kind = 0;
    // SAFETY: name, value and kind outlive the call; the flavour is not asked for.
    unsafe { object.Get(&name_text, 0, &raw mut present, Some(&raw mut kind), None) }
        .map_err(failed)?;
    let variant = variant::write(value, kind)?;
    // SAFETY: name and value outlive the call; type 0 keeps the property's own.
    unsafe { object.Put(&name_text, 0, &raw const variant, 0) }.map_err(failed)
}

/// All properties of an object, with its class and path.
fn instance(object: &IWbemClassObject) -> Result<Instance, HostError> {
    Ok(Instance {
        class: system_text(object, "__CLASS")?,
        path: system_text(object, "__PATH")?,
        ..properties(object)?
    })
}

fn properties(object: &IWbemClassObject) -> Result<Instance, HostError> {
    let failed = |error: Error| host_error("read an object", &error);
    let mut instance = Instance::default();
    // SAFETY: no pointers.
    unsafe { object.BeginEnumeration(WBEM_FLAG_NONSYSTEM_ONLY.0) }.map_err(failed)?;
    loop {
        let mut name = BSTR::default();
        let mut value = VARIANT::default();
        let mut kind = 0;
        let mut flavour = 0;
        // SAFETY: all four outlive the call, and are ours to free.
        unsafe {
            object.Next(
                0,
                &raw mut name,
                &raw mut value,
                &raw mut kind,
                &raw mut flavour,
            )
        }
        .map_err(failed)?;
        // The end is no error and has no name.
        if name.is_empty() {
            return Ok(instance);
        }
        let value = variant::read(&value)?;
        if value != Value::Null {
            instance.properties.insert(name.to_string(), value);
        }
    }
}

/// Empty where there is none: embedded objects have no path.
fn system_text(object: &IWbemClassObject, name: &str) -> Result<String, HostError> {
    let mut value = VARIANT::default();
    // SAFETY: name and value outlive the call; type and flavour are not asked for.
    unsafe { object.Get(&HSTRING::from(name), 0, &raw mut value, None, None) }
        .map_err(|error| host_error(name, &error))?;
    Ok(match variant::read(&value)? {
        Value::Text(text) => text,
        _ => String::new(),
    })
}
