//! MessagePack form of values, driven by the type on both sides.
//!
//! Decoding takes any legal width and order and never panics: lengths are checked against the bytes that are there,
//! nesting against [`MAX_DEPTH`]. Encoding writes what Terraform itself would write.

use std::collections::BTreeMap;

use rmp::Marker;
use rmp::encode as write;

use crate::number::Number;
use crate::object::Object;
use crate::types::{MAX_DEPTH, Type};
use crate::value::{Refinements, Value};

/// Terraform refuses longer payloads.
const MAX_REFINEMENT_BYTES: usize = 1024;
/// Extension type of unknown values with refinements.
const REFINED: i8 = 12;

/// Why bytes or a value do not fit the type.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct CodecError(String);

fn error<T>(problem: impl Into<String>) -> Result<T, CodecError> {
    Err(CodecError(problem.into()))
}

/// Decodes a value of `ty`; all bytes must be used.
pub fn decode(bytes: &[u8], ty: &Type) -> Result<Value, CodecError> {
    let mut reader = Reader { bytes };
    let value = reader.value(ty, 0)?;
    if reader.bytes.is_empty() {
        Ok(value)
    } else {
        error("bytes follow the value")
    }
}

/// Encodes a value, which must have the shape of `ty`.
pub fn encode(value: &Value, ty: &Type) -> Result<Vec<u8>, CodecError> {
    let mut out = Vec::new();
    encode_into(&mut out, value, ty)?;
    Ok(out)
}

/// Reads from the front of `bytes`.
struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], CodecError> {
        match self.bytes.split_at_checked(length) {
            Some((taken, rest)) => {
                self.bytes = rest;
                Ok(taken)
            }
            None => error("value is cut off"),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], CodecError> {
        let mut taken = [0; N];
        taken.copy_from_slice(self.take(N)?);
        Ok(taken)
    }

    fn marker(&mut self) -> Result<Marker, CodecError> {
        Ok(Marker::from_u8(self.array::<1>()?[0]))
    }

    fn peek(&self) -> Result<Marker, CodecError> {
        self.bytes.first().map_or_else(
            || error("value is cut off"),
            |byte| Ok(Marker::from_u8(*byte)),
        )
    }

    fn u8(&mut self) -> Result<usize, CodecError> {
        Ok(usize::from(self.array::<1>()?[0]))
    }

    fn u16(&mut self) -> Result<usize, CodecError> {
        Ok(usize::from(u16::from_be_bytes(self.array()?)))
    }

    fn u32(&mut self) -> Result<usize, CodecError> {
        usize::try_from(u32::from_be_bytes(self.array()?))
            .map_err(|_| CodecError("length is too big".to_owned()))
    }

    /// Payload of an extension value, or `None` when the next value is none.
    fn extension(&mut self) -> Result<Option<(i8, &'a [u8])>, CodecError> {
        let fixed = match self.peek()? {
            Marker::FixExt1 => Some(1),
            Marker::FixExt2 => Some(2),
            Marker::FixExt4 => Some(4),
            Marker::FixExt8 => Some(8),
            Marker::FixExt16 => Some(16),
            Marker::Ext8 | Marker::Ext16 | Marker::Ext32 => None,
            _ => return Ok(None),
        };
        let length = match (self.marker()?, fixed) {
            (_, Some(length)) => length,
            (Marker::Ext8, None) => self.u8()?,
            (Marker::Ext16, None) => self.u16()?,
            (_, None) => self.u32()?,
        };
        let kind = i8::from_be_bytes(self.array()?);
        Ok(Some((kind, self.take(length)?)))
    }

    fn value(&mut self, ty: &Type, depth: usize) -> Result<Value, CodecError> {
        if depth > MAX_DEPTH {
            return error(format!("value is nested deeper than {MAX_DEPTH} levels"));
        }
        if self.peek()? == Marker::Null {
            self.marker()?;
            return Ok(Value::Null);
        }
        if let Some((kind, payload)) = self.extension()? {
            return Ok(unknown(kind, payload));
        }
        match ty {
            Type::String => self.string().map(Value::String),
            Type::Number => self.number().map(Value::Number),
            Type::Bool => match self.marker()? {
                Marker::True => Ok(Value::Bool(true)),
                Marker::False => Ok(Value::Bool(false)),
                _ => error("not a bool"),
            },
            Type::Dynamic => self.dynamic(depth),
            Type::List(inner) => self.elements(inner, depth).map(Value::List),
            Type::Set(inner) => self.elements(inner, depth).map(Value::set),
            Type::Map(inner) => self.entries(depth, |_| Some(inner)).map(Value::Map),
            Type::Object(types) => {
                let entries = self.entries(depth, |name| types.get(name))?;
                match types.keys().find(|name| !entries.contains_key(*name)) {
                    Some(missing) => error(format!("attribute {missing:?} is missing")),
                    None => Ok(Value::Object(entries.into_iter().collect())),
                }
            }
            Type::Tuple(types) => {
                if self.array_length()? != types.len() {
                    return error(format!("tuple does not have {} elements", types.len()));
                }
                types
                    .iter()
                    .map(|ty| self.value(ty, depth + 1))
                    .collect::<Result<_, _>>()
                    .map(Value::Tuple)
            }
        }
    }

    fn string(&mut self) -> Result<String, CodecError> {
        let length = match self.marker()? {
            Marker::FixStr(length) => usize::from(length),
            Marker::Str8 => self.u8()?,
            Marker::Str16 => self.u16()?,
            Marker::Str32 => self.u32()?,
            _ => return error("not a string"),
        };
        match std::str::from_utf8(self.take(length)?) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => error("string is not UTF-8"),
        }
    }

    fn number(&mut self) -> Result<Number, CodecError> {
        let not_a_number = |_| CodecError("not a number".to_owned());
        if matches!(
            self.peek()?,
            Marker::FixStr(_) | Marker::Str8 | Marker::Str16 | Marker::Str32
        ) {
            return self.string()?.parse().map_err(not_a_number);
        }
        Ok(match self.marker()? {
            Marker::FixPos(number) => number.into(),
            Marker::FixNeg(number) => number.into(),
            Marker::U8 => u8::from_be_bytes(self.array()?).into(),
            Marker::U16 => u16::from_be_bytes(self.array()?).into(),
            Marker::U32 => u32::from_be_bytes(self.array()?).into(),
            Marker::U64 => u64::from_be_bytes(self.array()?).into(),
            Marker::I8 => i8::from_be_bytes(self.array()?).into(),
            Marker::I16 => i16::from_be_bytes(self.array()?).into(),
            Marker::I32 => i32::from_be_bytes(self.array()?).into(),
            Marker::I64 => i64::from_be_bytes(self.array()?).into(),
            Marker::F32 => {
                Number::from_f64(f32::from_be_bytes(self.array()?).into()).map_err(not_a_number)?
            }
            Marker::F64 => {
                Number::from_f64(f64::from_be_bytes(self.array()?)).map_err(not_a_number)?
            }
            _ => return error("not a number"),
        })
    }

    fn dynamic(&mut self, depth: usize) -> Result<Value, CodecError> {
        if self.array_length()? != 2 {
            return error("dynamic value is not a pair of type and value");
        }
        let length = match self.marker()? {
            Marker::Bin8 | Marker::Str8 => self.u8()?,
            Marker::Bin16 | Marker::Str16 => self.u16()?,
            Marker::Bin32 | Marker::Str32 => self.u32()?,
            Marker::FixStr(length) => usize::from(length),
            _ => return error("type of a dynamic value is not bytes"),
        };
        let ty = Type::from_bytes(self.take(length)?)
            .map_err(|problem| CodecError(problem.to_string()))?;
        let value = self.value(&ty, depth + 1)?;
        Ok(Value::Dynamic(Box::new(ty), Box::new(value)))
    }

    /// A length of things that take at least one byte each.
    fn checked(&self, length: usize) -> Result<usize, CodecError> {
        if length > self.bytes.len() {
            error("length is beyond the end")
        } else {
            Ok(length)
        }
    }

    fn array_length(&mut self) -> Result<usize, CodecError> {
        let length = match self.marker()? {
            Marker::FixArray(length) => usize::from(length),
            Marker::Array16 => self.u16()?,
            Marker::Array32 => self.u32()?,
            _ => return error("not a list, set or tuple"),
        };
        self.checked(length)
    }

    fn map_length(&mut self) -> Result<usize, CodecError> {
        let length = match self.marker()? {
            Marker::FixMap(length) => usize::from(length),
            Marker::Map16 => self.u16()?,
            Marker::Map32 => self.u32()?,
            _ => return error("not a map or object"),
        };
        self.checked(length)
    }

    fn elements(&mut self, inner: &Type, depth: usize) -> Result<Vec<Value>, CodecError> {
        let length = self.array_length()?;
        (0..length).map(|_| self.value(inner, depth + 1)).collect()
    }

    fn entries<'t>(
        &mut self,
        depth: usize,
        type_of: impl Fn(&str) -> Option<&'t Type>,
    ) -> Result<BTreeMap<String, Value>, CodecError>
where {
        let mut entries = BTreeMap::new();
        for _ in 0..self.map_length()? {
            let key = self.string()?;
            let Some(ty) = type_of(&key) else {
                return error(format!("attribute {key:?} is not in the type"));
            };
            let value = self
                .value(ty, depth + 1)
                .map_err(|inner| CodecError(format!("{key}: {inner}")))?;
            if entries.insert(key, value).is_some() {
                return error("a key occurs twice");
            }
        }
        Ok(entries)
    }
}

/// Refinements may always be dropped, so what cannot be read becomes plain unknown.
fn unknown(kind: i8, payload: &[u8]) -> Value {
    let refined = kind == REFINED && payload.len() <= MAX_REFINEMENT_BYTES;
    match refined.then(|| refinements(payload)) {
        Some(Ok(found)) if found != Refinements::default() => Value::Unknown(Some(Box::new(found))),
        _ => Value::unknown(),
    }
}

fn refinements(payload: &[u8]) -> Result<Refinements, CodecError> {
    let mut reader = Reader { bytes: payload };
    let mut found = Refinements::default();
    for _ in 0..reader.map_length()? {
        match reader.number()?.as_i64() {
            Some(1) => found.not_null = reader.marker()? == Marker::False,
            Some(2) => found.prefix = Some(reader.string()?),
            Some(3) => found.lower = Some(reader.bound()?),
            Some(4) => found.upper = Some(reader.bound()?),
            Some(5) => found.min_length = reader.number()?.as_u64(),
            Some(6) => found.max_length = reader.number()?.as_u64(),
            // The length of an unknown entry is unknown too, so nothing after it can be read; nor need it.
            _ => break,
        }
    }
    Ok(found)
}

impl Reader<'_> {
    fn bound(&mut self) -> Result<(Number, bool), CodecError> {
        if self.array_length()? != 2 {
            return error("bound is not a pair");
        }
        let number = self.number()?;
        Ok((number, self.marker()? == Marker::True))
    }
}

/// Writing to memory cannot fail but for lengths beyond 32 bits.
fn written<T, E>(outcome: Result<T, E>) -> Result<(), CodecError> {
    outcome
        .map(drop)
        .map_err(|_| CodecError("value cannot be written".to_owned()))
}

fn length(items: usize) -> Result<u32, CodecError> {
    u32::try_from(items).map_err(|_| CodecError("value has too many elements".to_owned()))
}

fn encode_into(out: &mut Vec<u8>, value: &Value, ty: &Type) -> Result<(), CodecError> {
    match (value, ty) {
        (Value::Null, _) => written(write::write_nil(out)),
        (Value::Unknown(refinements), _) => encode_unknown(out, refinements.as_deref()),
        (Value::Dynamic(own, inner), Type::Dynamic) => {
            written(write::write_array_len(out, 2))?;
            written(write::write_bin(out, &own.to_bytes()))?;
            encode_into(out, inner, own)
        }
        (Value::String(text), Type::String) => written(write::write_str(out, text)),
        (Value::Bool(flag), Type::Bool) => written(write::write_bool(out, *flag)),
        (Value::Number(number), Type::Number) => encode_number(out, number),
        (Value::List(items), Type::List(inner)) | (Value::Set(items), Type::Set(inner)) => {
            written(write::write_array_len(out, length(items.len())?))?;
            items
                .iter()
                .try_for_each(|item| encode_into(out, item, inner))
        }
        (Value::Tuple(items), Type::Tuple(types)) if items.len() == types.len() => {
            written(write::write_array_len(out, length(items.len())?))?;
            items
                .iter()
                .zip(types)
                .try_for_each(|(item, ty)| encode_into(out, item, ty))
        }
        (Value::Map(entries), Type::Map(inner)) => {
            written(write::write_map_len(out, length(entries.len())?))?;
            entries.iter().try_for_each(|(key, item)| {
                written(write::write_str(out, key))?;
                encode_into(out, item, inner)
            })
        }
        (Value::Object(object), Type::Object(types)) => encode_object(out, object, types),
        _ => error(format!("value does not have the type {}", ty.to_json())),
    }
}

fn encode_object(
    out: &mut Vec<u8>,
    object: &Object,
    types: &BTreeMap<String, Type>,
) -> Result<(), CodecError> {
    if let Some((extra, _)) = object.iter().find(|(name, _)| !types.contains_key(*name)) {
        return error(format!("attribute {extra:?} is not in the type"));
    }
    written(write::write_map_len(out, length(types.len())?))?;
    types.iter().try_for_each(|(name, ty)| {
        written(write::write_str(out, name))?;
        encode_into(out, object.get(name), ty)
            .map_err(|inner| CodecError(format!("{name}: {inner}")))
    })
}

fn encode_number(out: &mut Vec<u8>, number: &Number) -> Result<(), CodecError> {
    if let Some(whole) = number.as_i64() {
        return written(write::write_sint(out, whole));
    }
    match number.exact_f64() {
        Some(float) if !number.is_whole() => written(write::write_f64(out, float)),
        _ => written(write::write_str(out, number.as_text())),
    }
}

fn encode_unknown(out: &mut Vec<u8>, refinements: Option<&Refinements>) -> Result<(), CodecError> {
    let payload = match refinements {
        Some(refinements) if *refinements != Refinements::default() => {
            encode_refinements(refinements)?
        }
        _ => Vec::new(),
    };
    if payload.is_empty() || payload.len() > MAX_REFINEMENT_BYTES {
        written(write::write_ext_meta(out, 1, 0))?;
        out.push(0);
    } else {
        written(write::write_ext_meta(out, length(payload.len())?, REFINED))?;
        out.extend_from_slice(&payload);
    }
    Ok(())
}

fn encode_refinements(refinements: &Refinements) -> Result<Vec<u8>, CodecError> {
    let Refinements {
        not_null,
        prefix,
        lower,
        upper,
        min_length,
        max_length,
    } = refinements;
    let entries = [
        *not_null,
        prefix.is_some(),
        lower.is_some(),
        upper.is_some(),
        min_length.is_some(),
        max_length.is_some(),
    ];
    let mut out = Vec::new();
    written(write::write_map_len(
        &mut out,
        length(entries.iter().filter(|set| **set).count())?,
    ))?;
    if *not_null {
        written(write::write_uint(&mut out, 1))?;
        written(write::write_bool(&mut out, false))?;
    }
    if let Some(prefix) = prefix {
        written(write::write_uint(&mut out, 2))?;
        written(write::write_str(&mut out, prefix))?;
    }
    for (key, bound) in [(3, lower), (4, upper)] {
        if let Some((number, inclusive)) = bound {
            written(write::write_uint(&mut out, key))?;
            written(write::write_array_len(&mut out, 2))?;
            encode_number(&mut out, number)?;
            written(write::write_bool(&mut out, *inclusive))?;
        }
    }
    for (key, bound) in [(5, min_length), (6, max_length)] {
        if let Some(bound) = bound {
            written(write::write_uint(&mut out, key))?;
            written(write::write_uint(&mut out, *bound))?;
        }
    }
    Ok(out)
}
