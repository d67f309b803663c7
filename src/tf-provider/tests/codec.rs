//! The value codec: nothing is lost, nothing hostile does harm.

use proptest::prelude::*;
use tf_provider::{Number, Object, Refinements, Type, Value, json, msgpack};

/// Types up to three levels deep; sets hold no dynamic type, as in real schemas.
fn types() -> impl Strategy<Value = Type> {
    let plain = prop_oneof![Just(Type::String), Just(Type::Number), Just(Type::Bool)];
    plain.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            inner.clone().prop_map(Type::list),
            inner.clone().prop_map(Type::set),
            inner.clone().prop_map(Type::map),
            prop::collection::btree_map("[a-c]", inner.clone(), 0..3).prop_map(Type::Object),
            prop::collection::vec(inner, 0..3).prop_map(Type::Tuple),
        ]
    })
}

fn with_dynamic() -> impl Strategy<Value = Type> {
    prop_oneof![
        4 => types(),
        1 => Just(Type::Dynamic),
        1 => Just(Type::list(Type::Dynamic)),
        1 => Just(Type::object([("any", Type::Dynamic), ("text", Type::String)])),
    ]
}

fn numbers() -> impl Strategy<Value = Number> {
    prop_oneof![
        any::<i64>().prop_map(Number::from),
        any::<u64>().prop_map(Number::from),
        any::<f64>().prop_filter_map("not-a-number is no number", |float| Number::from_f64(float)
            .ok()),
        "-?[1-9][0-9]{0,60}(\\.[0-9]{0,60}[1-9])?"
            .prop_map(|text| text.parse().expect("it is a decimal")),
    ]
}

fn refinements() -> impl Strategy<Value = Refinements> {
    let bound = || prop::option::of((numbers(), any::<bool>()));
    (
        any::<bool>(),
        prop::option::of("[a-z]{0,8}"),
        bound(),
        bound(),
        prop::option::of(any::<u64>()),
    )
        .prop_map(|(not_null, prefix, lower, upper, min_length)| Refinements {
            not_null,
            prefix,
            lower,
            upper,
            min_length,
            max_length: min_length,
        })
}

fn unknowns() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::unknown()),
        refinements().prop_map(|refinements| {
            if refinements == Refinements::default() {
                Value::unknown()
            } else {
                Value::Unknown(Some(Box::new(refinements)))
            }
        }),
    ]
}

/// Values of a type, with null and unknown at every level when `unknown`.
fn values(ty: &Type, unknown: bool) -> BoxedStrategy<Value> {
    let known: BoxedStrategy<Value> = match ty {
        Type::String => any::<String>().prop_map(Value::String).boxed(),
        Type::Number => numbers().prop_map(Value::Number).boxed(),
        Type::Bool => any::<bool>().prop_map(Value::Bool).boxed(),
        Type::Dynamic => types()
            .prop_flat_map(move |own| {
                values(&own, unknown).prop_map(move |value| (own.clone(), value))
            })
            .prop_map(|(own, value)| Value::Dynamic(Box::new(own), Box::new(value)))
            .boxed(),
        Type::List(inner) => prop::collection::vec(values(inner, unknown), 0..4)
            .prop_map(Value::List)
            .boxed(),
        Type::Set(inner) => prop::collection::vec(values(inner, unknown), 0..4)
            .prop_map(Value::set)
            .boxed(),
        Type::Map(inner) => {
            prop::collection::btree_map(any::<String>(), values(inner, unknown), 0..4)
                .prop_map(Value::Map)
                .boxed()
        }
        Type::Tuple(types) => {
            let items: Vec<_> = types.iter().map(|ty| values(ty, unknown)).collect();
            items.prop_map(Value::Tuple).boxed()
        }
        Type::Object(types) => {
            let names: Vec<String> = types.keys().cloned().collect();
            let items: Vec<_> = types.values().map(|ty| values(ty, unknown)).collect();
            items
                .prop_map(move |items| {
                    Value::Object(names.iter().cloned().zip(items).collect::<Object>())
                })
                .boxed()
        }
    };
    if unknown {
        prop_oneof![6 => known, 1 => Just(Value::Null), 1 => unknowns()].boxed()
    } else {
        prop_oneof![6 => known, 1 => Just(Value::Null)].boxed()
    }
}

fn typed_values(unknown: bool) -> impl Strategy<Value = (Type, Value)> {
    with_dynamic().prop_flat_map(move |ty| {
        let value = values(&ty, unknown);
        (Just(ty), value)
    })
}

/// The JSON form as a state file has it, numbers in full.
fn to_json(value: &Value, out: &mut String) {
    let quoted = |text: &str| serde_json::to_string(text).expect("a text is JSON");
    let all = |items: &[Value], out: &mut String| {
        out.push('[');
        for (index, item) in items.iter().enumerate() {
            if index > 0 {
                out.push(',');
            }
            to_json(item, out);
        }
        out.push(']');
    };
    let members = |entries: &mut dyn Iterator<Item = (&str, &Value)>, out: &mut String| {
        out.push('{');
        for (index, (key, item)) in entries.enumerate() {
            if index > 0 {
                out.push(',');
            }
            out.push_str(&format!("{}:", quoted(key)));
            to_json(item, out);
        }
        out.push('}');
    };
    match value {
        Value::Null | Value::Unknown(_) => out.push_str("null"),
        Value::Bool(flag) => out.push_str(&flag.to_string()),
        Value::Number(number)
            if number.to_f64().is_infinite() && number.as_text().ends_with("inf") =>
        {
            out.push_str(&quoted(number.as_text()));
        }
        Value::Number(number) => out.push_str(number.as_text()),
        Value::String(text) => out.push_str(&quoted(text)),
        Value::List(items) | Value::Set(items) | Value::Tuple(items) => all(items, out),
        Value::Map(entries) => members(
            &mut entries.iter().map(|(key, item)| (key.as_str(), item)),
            out,
        ),
        Value::Object(object) => members(&mut object.iter(), out),
        Value::Dynamic(ty, inner) => {
            out.push_str(&format!("{{\"type\":{},\"value\":", ty.to_json()));
            to_json(inner, out);
            out.push('}');
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn every_value_survives_messagepack((ty, value) in typed_values(true)) {
        let bytes = msgpack::encode(&value, &ty).expect("the value has the type");
        prop_assert_eq!(msgpack::decode(&bytes, &ty).expect("our own bytes can be read"), value);
    }

    #[test]
    fn every_known_value_survives_json((ty, value) in typed_values(false)) {
        let mut text = String::new();
        to_json(&value, &mut text);
        prop_assert_eq!(json::decode(text.as_bytes(), &ty).expect("the JSON has the type"), value);
    }

    #[test]
    fn every_type_survives_its_json_form(ty in with_dynamic()) {
        prop_assert_eq!(Type::from_bytes(&ty.to_bytes()).expect("our own bytes can be read"), ty);
    }

    #[test]
    fn hostile_bytes_give_errors_and_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..64), ty in with_dynamic()) {
        let _ = msgpack::decode(&bytes, &ty);
        let _ = json::decode(&bytes, &ty);
        let _ = Type::from_bytes(&bytes);
    }

    #[test]
    fn damaged_bytes_give_errors_and_never_panic(
        (ty, value) in typed_values(true),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut bytes = msgpack::encode(&value, &ty).expect("the value has the type");
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let _ = msgpack::decode(&bytes, &ty);
        let _ = msgpack::decode(&bytes[..at], &ty);
    }

    #[test]
    fn numbers_are_ordered_like_floats(left in -1e9..1e9f64, right in -1e9..1e9f64) {
        let number = |float| Number::from_f64(float).expect("it is finite");
        prop_assert_eq!(Some(number(left).cmp(&number(right))), left.partial_cmp(&right));
    }
}

fn encode_number(text: &str) -> Vec<u8> {
    let number: Number = text.parse().expect("it is a number");
    msgpack::encode(&Value::Number(number), &Type::Number).expect("it is a number")
}

#[test]
fn numbers_are_written_as_terraform_writes_them() {
    assert_eq!(encode_number("7"), [7]);
    assert_eq!(encode_number("0.5"), [0xCB, 0x3F, 0xE0, 0, 0, 0, 0, 0, 0]);
    // Not exact in a float, so the decimal text.
    assert_eq!(encode_number("0.1"), b"\xA30.1");
    assert_eq!(&encode_number("1e20")[1..], b"100000000000000000000");
    assert_eq!(encode_number("-1e-2"), b"\xA5-0.01");
    assert_eq!(
        &encode_number("18446744073709551616")[1..],
        b"18446744073709551616"
    );
}

#[test]
fn unknown_is_written_as_terraform_writes_it_and_read_in_any_form() {
    assert_eq!(
        msgpack::encode(&Value::unknown(), &Type::String),
        Ok(vec![0xD4, 0, 0])
    );
    for bytes in [
        &[0xD4, 0, 0][..],
        &[0xC7, 0, 0],
        &[0xC7, 0, 99],
        &[0xC7, 1, 12, 0xFF],
    ] {
        assert_eq!(
            msgpack::decode(bytes, &Type::Bool),
            Ok(Value::unknown()),
            "{bytes:?}"
        );
    }
    let not_null =
        msgpack::encode(&Value::unknown_not_null(), &Type::String).expect("it can be written");
    assert_eq!(not_null, [0xC7, 3, 12, 0x81, 1, 0xC2]);
}

#[test]
fn hostile_lengths_and_depths_are_refused() {
    let huge = [0xDD, 0xFF, 0xFF, 0xFF, 0xFF, 0xC0];
    assert!(msgpack::decode(&huge, &Type::list(Type::String)).is_err());
    let mut nested = Vec::new();
    for _ in 0..100_000 {
        nested.extend_from_slice(b"\x92\xC4\x09\"dynamic\"");
    }
    nested.push(0xC0);
    assert!(msgpack::decode(&nested, &Type::Dynamic).is_err());
    let mut ty = "[\"list\",".repeat(100_000);
    ty.push_str("\"bool\"");
    ty.push_str(&"]".repeat(100_000));
    assert!(Type::from_bytes(ty.as_bytes()).is_err());
    assert!("1e999999999999".parse::<Number>().is_err());
}

#[test]
fn objects_need_exactly_their_attributes() {
    let ty = Type::object([("a", Type::String)]);
    assert!(msgpack::decode(b"\x80", &ty).is_err(), "one is missing");
    assert!(
        msgpack::decode(b"\x82\xA1a\xC0\xA1b\xC0", &ty).is_err(),
        "one is unknown"
    );
    assert!(
        msgpack::decode(b"\x82\xA1a\xC0\xA1a\xC0", &ty).is_err(),
        "one is there twice"
    );
    assert!(msgpack::decode(b"\x81\xA1a\xC0", &ty).is_ok());
    assert!(
        msgpack::decode(b"\x81\xA1a\xC0\xC0", &ty).is_err(),
        "something follows"
    );
}

#[test]
fn equal_elements_of_a_set_collapse_but_unknown_ones_do_not() {
    assert_eq!(Value::set(["a", "b", "a"]), Value::set(["b", "a"]));
    let Value::Set(elements) = Value::set([Value::unknown(), Value::unknown()]) else {
        panic!("it is a set");
    };
    assert_eq!(elements.len(), 2);
}
