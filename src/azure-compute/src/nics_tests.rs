//! The choice of NICs.

use proptest::prelude::*;

use super::*;
use crate::finding::Severity;

fn subnet(name: &str, prefix: &str) -> Subnet {
    Subnet {
        name: name.to_owned(),
        id: format!("/net/subnets/{name}"),
        prefixes: vec![prefix.to_owned()],
    }
}

fn nic(id: &str, source_subnet: &str, address: Address) -> NicSpec {
    NicSpec {
        id: id.to_owned(),
        selection: Selection::SelectedByDefault,
        source_subnet: Some(source_subnet.to_owned()),
        subnet: None,
        address,
        public_address: PublicAddress::None,
        target_name: None,
        security_group_id: None,
        accelerated: false,
    }
}

struct Case {
    drill: bool,
    nics: Vec<NicSpec>,
    primary: Option<String>,
    taken: Vec<Ipv4Addr>,
}

impl Case {
    fn of(nics: Vec<NicSpec>) -> Case {
        Case {
            drill: false,
            nics,
            primary: None,
            taken: Vec::new(),
        }
    }

    fn choose(&self) -> (Vec<ChosenNic>, Vec<crate::Finding>) {
        let subnets = [subnet("web", "10.0.1.0/24"), subnet("apps", "10.0.2.0/24")];
        let availability = self
            .taken
            .iter()
            .map(|a| {
                (
                    *a,
                    Availability {
                        free: false,
                        others: vec![ip(77)],
                    },
                )
            })
            .collect();
        let mut findings = Findings::default();
        let chosen = choose(
            &Question {
                vm_name: "vm",
                drill: self.drill,
                nics: &self.nics,
                primary: self.primary.as_deref(),
                subnets: &subnets,
                availability: &availability,
            },
            &mut findings,
        );
        (chosen, findings.0)
    }
}

fn ip(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 1, last)
}

#[test]
fn a_nic_goes_to_the_subnet_of_the_same_name_else_to_the_first() {
    let (chosen, findings) = Case::of(vec![
        nic("a", "APPS", Address::Dynamic),
        nic("b", "db", Address::Dynamic),
    ])
    .choose();
    assert_eq!(chosen[0].subnet_id, "/net/subnets/apps");
    assert_eq!(chosen[1].subnet_id, "/net/subnets/web");
    assert_eq!(findings.len(), 1);
    assert_eq!(findings[0].severity, Severity::Note);
    let drill = Case {
        drill: true,
        ..Case::of(vec![nic("b", "db", Address::Dynamic)])
    };
    assert_eq!(
        drill.choose().0[0].subnet_id,
        "/net/subnets/apps",
        "first by alphabet"
    );
}

#[test]
fn a_wished_subnet_must_exist_except_in_a_drill() {
    let mut wished = nic("a", "web", Address::Dynamic);
    wished.subnet = Some("gone".to_owned());
    let mut case = Case::of(vec![wished]);
    let (chosen, findings) = case.choose();
    assert!(chosen.is_empty());
    assert_eq!(findings[0].text, "the network has no subnet `gone`");
    case.drill = true;
    assert_eq!(case.choose().0[0].subnet_id, "/net/subnets/web");
}

#[test]
fn the_chosen_nic_is_primary_and_unselected_ones_are_not_made() {
    let mut hidden = nic("a", "web", Address::Dynamic);
    hidden.selection = Selection::NotSelected;
    let mut case = Case::of(vec![
        hidden,
        nic("b", "web", Address::Dynamic),
        nic("c", "web", Address::Dynamic),
    ]);
    let primaries = |case: &Case| {
        case.choose()
            .0
            .iter()
            .map(|n| (n.source_id.clone(), n.primary))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        primaries(&case),
        [("b".to_owned(), true), ("c".to_owned(), false)]
    );
    case.primary = Some("C".to_owned());
    assert_eq!(
        primaries(&case),
        [("b".to_owned(), false), ("c".to_owned(), true)]
    );
    case.primary = Some("a".to_owned());
    assert_eq!(case.choose().1[0].severity, Severity::Error);
}

#[test]
fn a_taken_address_fails_a_failover_and_is_replaced_in_a_drill() {
    let mut case = Case::of(vec![nic("a", "web", Address::Exactly(ip(10)))]);
    assert_eq!(case.choose().0[0].address, Some(ip(10)));
    case.taken = vec![ip(10)];
    assert_eq!(case.choose().1[0].severity, Severity::Error);
    case.drill = true;
    let (chosen, findings) = case.choose();
    assert_eq!(chosen[0].address, Some(ip(77)));
    assert_eq!(findings[0].severity, Severity::Warning);
}

#[test]
fn an_address_is_kept_when_it_is_free_and_fits() {
    let mut case = Case::of(vec![nic("a", "web", Address::Keep(ip(10)))]);
    assert_eq!(case.choose().0[0].address, Some(ip(10)));
    case.taken = vec![ip(10)];
    assert_eq!(case.choose().0[0].address, Some(ip(77)));
    for outside in [ip(3), ip(255), Ipv4Addr::new(192, 168, 0, 9)] {
        let (chosen, findings) = Case::of(vec![nic("a", "web", Address::Keep(outside))]).choose();
        assert_eq!(chosen[0].address, None);
        assert_eq!(findings[0].severity, Severity::Warning);
    }
}

fn any_address() -> impl Strategy<Value = Address> {
    prop_oneof![
        Just(Address::Dynamic),
        any::<u8>().prop_map(|b| Address::Keep(ip(b))),
        any::<u8>().prop_map(|b| Address::Exactly(ip(b))),
    ]
}

proptest! {
    #[test]
    fn whatever_is_wished_there_is_one_primary_and_no_address_twice(
        wishes in proptest::collection::vec((any::<bool>(), any_address(), "web|apps|db"), 1..8),
        taken in proptest::collection::vec(any::<u8>(), 0..20),
        drill in any::<bool>(),
    ) {
        let nics: Vec<NicSpec> = wishes.iter().enumerate().map(|(i, (on, address, subnet))| {
            let mut nic = nic(&format!("n{i}"), subnet, *address);
            if !on {
                nic.selection = Selection::NotSelected;
            }
            nic
        }).collect();
        let case = Case { drill, taken: taken.into_iter().map(ip).collect(), ..Case::of(nics) };
        let (chosen, findings) = case.choose();
        let on = wishes.iter().filter(|w| w.0).count();
        prop_assert_eq!(chosen.len(), on);
        prop_assert_eq!(chosen.iter().filter(|n| n.primary).count(), usize::from(on > 0));
        let fixed: Vec<_> = chosen.iter().filter_map(|n| n.address).collect();
        let different: BTreeSet<_> = fixed.iter().collect();
        prop_assert_eq!(fixed.len(), different.len());
        for address in fixed {
            prop_assert!(!case.taken.contains(&address) || address == ip(77));
        }
        if drill && on > 0 {
            prop_assert!(findings.iter().all(|f| f.severity < Severity::Error), "a drill never fails over an address");
        }
    }

    #[test]
    fn any_prefix_is_read_without_panic(text in ".*") {
        if let Some((first, last)) = prefix(&text) {
            prop_assert!(first <= last);
        }
    }
}
