//! Values of WMI as `VARIANT`s.
#![expect(
    unsafe_code,
    reason = "a VARIANT is a union, and its arrays are the system's"
)]

use std::ffi::c_void;
use std::mem::ManuallyDrop;

use windows::Win32::System::Com::SAFEARRAY;
use windows::Win32::System::Ole::{
    SafeArrayCreateVector, SafeArrayGetElement, SafeArrayGetLBound, SafeArrayGetUBound,
    SafeArrayPutElement,
};
use windows::Win32::System::Variant::{
    VARENUM, VARIANT, VARIANT_0_0, VARIANT_0_0_0, VT_ARRAY, VT_BOOL, VT_BSTR, VT_I1, VT_I2, VT_I4,
    VT_I8, VT_UI1, VT_UI2, VT_UI4, VT_UI8,
};
use windows::Win32::System::Wmi::{
    CIM_FLAG_ARRAY, CIM_SINT8, CIM_SINT16, CIM_SINT64, CIM_UINT8, CIM_UINT64,
};
use windows::core::BSTR;

use super::super::host::{HostError, Value};

/// What a `VARIANT` of WMI says. Kinds that the driver has no use for (embedded objects, reals) are null.
pub(super) fn read(variant: &VARIANT) -> Result<Value, HostError> {
    // SAFETY: the tag is always set, and says which member of the union is.
    let (kind, inner) = unsafe {
        let tagged: &VARIANT_0_0 = &variant.Anonymous.Anonymous;
        (tagged.vt, &tagged.Anonymous)
    };
    if kind.0 & VT_ARRAY.0 != 0 {
        // SAFETY: as above; the array belongs to the variant, which outlives the call.
        let array = unsafe { inner.parray };
        return read_array(array, VARENUM(kind.0 & !VT_ARRAY.0));
    }
    // SAFETY: as above, for each of the members.
    Ok(unsafe {
        match kind {
            VT_BOOL => Value::Bool(inner.boolVal.as_bool()),
            VT_BSTR => Value::Text(inner.bstrVal.to_string()),
            VT_I1 => Value::Number(inner.cVal.into()),
            VT_I2 => Value::Number(inner.iVal.into()),
            VT_I4 => Value::Number(inner.lVal.into()),
            VT_I8 => Value::Number(inner.llVal),
            VT_UI1 => Value::Number(inner.bVal.into()),
            VT_UI2 => Value::Number(inner.uiVal.into()),
            VT_UI4 => Value::Number(inner.ulVal.into()),
            VT_UI8 => i64::try_from(inner.ullVal).map_or(Value::Null, Value::Number),
            _ => Value::Null,
        }
    })
}

fn read_array(array: *const SAFEARRAY, kind: VARENUM) -> Result<Value, HostError> {
    if array.is_null() {
        return Ok(Value::Null);
    }
    // SAFETY: the array is there, and arrays of WMI have one dimension.
    let (first, last) = unsafe { (SafeArrayGetLBound(array, 1), SafeArrayGetUBound(array, 1)) };
    let bounds = first.map_err(|error| wrong(&error))?..=last.map_err(|error| wrong(&error))?;
    if kind == VT_BSTR {
        let mut texts = Vec::new();
        for index in bounds {
            let mut text = BSTR::default();
            // SAFETY: the elements are strings; the call writes a copy of one, which is ours to free.
            unsafe { SafeArrayGetElement(array, &raw const index, (&raw mut text).cast()) }
                .map_err(|error| wrong(&error))?;
            texts.push(text.to_string());
        }
        return Ok(Value::Texts(texts));
    }
    let mut numbers = Vec::new();
    for index in bounds {
        let mut bytes = [0_u8; 16];
        // SAFETY: numbers have at most eight bytes, and nothing else is read here.
        match kind {
            VT_I1 | VT_I2 | VT_I4 | VT_I8 | VT_UI1 | VT_UI2 | VT_UI4 | VT_UI8 => unsafe {
                SafeArrayGetElement(array, &raw const index, bytes.as_mut_ptr().cast())
            },
            _ => return Ok(Value::Null),
        }
        .map_err(|error| wrong(&error))?;
        let [a, b, c, d, e, f, g, h, ..] = bytes;
        numbers.push(match kind {
            VT_I1 => i64::from(i8::from_le_bytes([a])),
            VT_I2 => i64::from(i16::from_le_bytes([a, b])),
            VT_I4 => i64::from(i32::from_le_bytes([a, b, c, d])),
            // The rest of the buffer is zero, so that smaller ones without a sign are themselves.
            _ => i64::from_le_bytes([a, b, c, d, e, f, g, h]),
        });
    }
    Ok(Value::Numbers(numbers))
}

/// A `VARIANT` for a property or parameter of type `cim`, which decides the width of numbers. Instances are text by now.
pub(super) fn write(value: &Value, cim: i32) -> Result<VARIANT, HostError> {
    let scalar = cim & !CIM_FLAG_ARRAY.0;
    match value {
        Value::Null => Ok(VARIANT::default()),
        Value::Bool(bool) => Ok(VARIANT::from(*bool)),
        Value::Text(text) => Ok(VARIANT::from(text.as_str())),
        // WMI takes 64-bit numbers as text, and those of eight and sixteen bits in kinds of its own.
        Value::Number(number) if scalar == CIM_UINT64.0 || scalar == CIM_SINT64.0 => {
            Ok(VARIANT::from(number.to_string().as_str()))
        }
        Value::Number(number) if scalar == CIM_UINT8.0 => narrow(*number).map(u8::into),
        Value::Number(number) if scalar == CIM_SINT8.0 || scalar == CIM_SINT16.0 => {
            narrow(*number).map(i16::into)
        }
        // Unsigned ones of 32 bits go as the same bits with a sign.
        Value::Number(number) => match u32::try_from(*number) {
            Ok(number) => Ok(VARIANT::from(number.cast_signed())),
            Err(_) => narrow(*number).map(i32::into),
        },
        Value::Texts(texts) => texts_array(texts),
        Value::Numbers(_) | Value::Embedded(_) | Value::EmbeddedAll(_) => Err(HostError::new(
            0x8000_4001,
            "a value of this kind is never passed",
        )),
    }
}

fn narrow<T: TryFrom<i64>>(number: i64) -> Result<T, HostError> {
    T::try_from(number).map_err(|_| {
        HostError::new(
            0x8002_000A,
            format!("{number} is too large for its parameter"),
        )
    })
}

fn texts_array(texts: &[String]) -> Result<VARIANT, HostError> {
    let count =
        u32::try_from(texts.len()).map_err(|error| HostError::new(87, error.to_string()))?;
    // SAFETY: no pointers go in; the array belongs to the variant from the next statement on, which frees it.
    let array = unsafe { SafeArrayCreateVector(VT_BSTR, 0, count) };
    if array.is_null() {
        return Err(HostError::new(0x8007_000E, "no memory for an array"));
    }
    let mut variant = VARIANT::default();
    variant.Anonymous.Anonymous = ManuallyDrop::new(VARIANT_0_0 {
        vt: VARENUM(VT_ARRAY.0 | VT_BSTR.0),
        wReserved1: 0,
        wReserved2: 0,
        wReserved3: 0,
        Anonymous: VARIANT_0_0_0 { parray: array },
    });
    // An empty text is no string at all here, which is what the elements are at first; its pointer would not be one of a string.
    for (index, text) in (0_i32..).zip(texts).filter(|(_, text)| !text.is_empty()) {
        let text = BSTR::from(text.as_str());
        let pointer: *const c_void = text.as_ptr().cast();
        // SAFETY: the array has that many elements; for strings the call takes the string's own pointer and copies it.
        unsafe { SafeArrayPutElement(array, &raw const index, pointer) }
            .map_err(|error| wrong(&error))?;
    }
    Ok(variant)
}

fn wrong(error: &windows::core::Error) -> HostError {
    super::wmi::host_error("read or write an array", error)
}
