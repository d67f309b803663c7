//! One case for each rule, and what holds for all of them.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const GIB: u64 = 1 << 30;

/// A VM that no rule says anything of.
fn plain() -> Facts {
    Facts {
        name: "web01".to_owned(),
        generation: 1,
        os_type: "Linux".to_owned(),
        os_name: "Debian GNU/Linux 12".to_owned(),
        architecture: "x86_64".to_owned(),
        adapters: Some(1),
        disks: vec![disk("os", true), disk("data", false)],
        ..Facts::default()
    }
}

fn disk(id: &str, operating_system: bool) -> DiskFacts {
    DiskFacts {
        id: id.to_owned(),
        name: format!("{id}.vhdx"),
        size_bytes: 100 * GIB,
        operating_system,
        logical_sector_bytes: 512,
        shared: Presence::NotPresent,
        pass_through: Presence::NotPresent,
        volume: "1".to_owned(),
        volume_free_bytes: Some(1_000 * GIB),
        look: Some(Look {
            table: Table::Gpt,
            partitions: 2,
            guest: Guest::Linux,
            ..Look::default()
        }),
    }
}

fn with(change: impl FnOnce(&mut Facts)) -> Facts {
    let mut facts = plain();
    change(&mut facts);
    facts
}

fn look(facts: &mut Facts, disk: usize) -> &mut Look {
    facts.disks[disk].look.as_mut().unwrap()
}

/// What each rule finds.
fn cases() -> Vec<(&'static str, Facts)> {
    use Presence::Present;
    vec![
        ("Guest32Bit", with(|vm| vm.architecture = "x86".to_owned())),
        (
            "GuestArchitecture",
            with(|vm| vm.architecture = "aarch64".to_owned()),
        ),
        (
            "GuestUnknown",
            with(|vm| {
                vm.os_type.clear();
                look(vm, 0).guest = Guest::Unknown;
            }),
        ),
        (
            "GuestMismatch",
            with(|vm| look(vm, 0).guest = Guest::Windows),
        ),
        (
            "GuestTooOld",
            with(|vm| vm.os_name = "Windows Server 2003".to_owned()),
        ),
        (
            "NanoServer",
            with(|vm| vm.os_name = "Windows Server 2016 Nano".to_owned()),
        ),
        ("LinuxGeneration2", with(|vm| vm.generation = 2)),
        ("SecureBoot", with(|vm| vm.secure_boot = Present)),
        ("VirtualTpm", with(|vm| vm.virtual_tpm = Present)),
        ("Checkpoints", with(|vm| vm.checkpoints = Present)),
        ("SourceName", with(|vm| vm.name = "web[01]".to_owned())),
        (
            "OsDiskCount",
            with(|vm| vm.disks[1].operating_system = true),
        ),
        (
            "OsDiskTooLargeGeneration1",
            with(|vm| vm.disks[0].size_bytes = 2_048 * GIB + 1),
        ),
        (
            "OsDiskTooLargeGeneration2",
            with(|vm| {
                vm.generation = 2;
                vm.disks[0].size_bytes = 4_095 * GIB + 1;
            }),
        ),
        (
            "OsDiskOver300GiB",
            with(|vm| {
                vm.generation = 2;
                vm.disks[0].size_bytes = 300 * GIB + 1;
            }),
        ),
        (
            "DataDiskTooLarge",
            with(|vm| vm.disks[1].size_bytes = 32_767 * GIB + 1),
        ),
        (
            "DataDiskOver4095GiB",
            with(|vm| vm.disks[1].size_bytes = 4_095 * GIB + 1),
        ),
        ("TooManyDataDisks", with(|vm| more_disks(vm, 65))),
        ("Over16DataDisks", with(|vm| more_disks(vm, 17))),
        ("SharedDisk", with(|vm| vm.disks[1].shared = Present)),
        (
            "PassThroughDisk",
            with(|vm| vm.disks[1].pass_through = Present),
        ),
        ("FibreChannel", with(|vm| vm.fibre_channel = Present)),
        (
            "FourKNative",
            with(|vm| vm.disks[0].logical_sector_bytes = 4096),
        ),
        ("DynamicOsDisk", with(|vm| look(vm, 0).dynamic_disk = true)),
        (
            "DynamicDataDisk",
            with(|vm| look(vm, 1).dynamic_disk = true),
        ),
        ("BitLockerOsDisk", with(|vm| look(vm, 0).bitlocker = true)),
        ("BitLockerDataDisk", with(|vm| look(vm, 1).bitlocker = true)),
        ("LuksVolume", with(|vm| look(vm, 0).luks = true)),
        ("LvmOsDisk", with(|vm| look(vm, 0).lvm = true)),
        (
            "ManyPartitions",
            with(|vm| {
                look(vm, 0).efi_system_partition = true;
                look(vm, 0).partitions = 6;
            }),
        ),
        (
            "PartitionTable",
            with(|vm| look(vm, 1).table = Table::Damaged),
        ),
        ("TooManyAdapters", with(|vm| vm.adapters = Some(9))),
        ("NoAdapter", with(|vm| vm.adapters = Some(0))),
        (
            "HostSpaceLow",
            with(|vm| vm.disks[0].volume_free_bytes = Some((128 << 20) - 1)),
        ),
        // Half of 200 GiB on one volume.
        (
            "ChangeLogSpace",
            with(|vm| vm.disks[1].volume_free_bytes = Some(99 * GIB)),
        ),
    ]
}

fn more_disks(vm: &mut Facts, data: usize) {
    let disks = (0..data).map(|number| disk(&format!("data{number}"), false));
    vm.disks.truncate(1);
    vm.disks.extend(disks);
    for disk in &mut vm.disks {
        disk.volume_free_bytes = Some(1_000_000 * GIB);
    }
}

fn found(facts: &Facts, request: &Request, code: &str) -> Vec<Finding> {
    let findings = judge(facts, request).into_iter();
    findings.filter(|finding| finding.code == code).collect()
}

#[test]
fn nothing_is_said_of_a_plain_vm() {
    for target in Target::ALL {
        assert_eq!(judge(&plain(), &Request::new(target)), []);
    }
}

#[test]
fn every_rule_finds_its_case_with_the_severity_of_the_target() {
    for (code, facts) in cases() {
        let rule = rules().find(|rule| rule.code == code).unwrap();
        for (target, severity) in [
            (Target::Azure, rule.azure),
            (Target::RecoveryHost, rule.recovery_host),
        ] {
            let hits = found(&facts, &Request::new(target), code);
            assert_eq!(hits.len(), 1, "{code} to {target:?}");
            assert_eq!(hits[0].severity, severity, "{code} to {target:?}");
            assert!(hits[0].what.ends_with('.'), "{code}");
        }
    }
}

#[test]
fn every_rule_that_looks_has_a_case_and_every_rule_is_complete() {
    let cases: BTreeSet<&str> = cases().iter().map(|(code, _)| *code).collect();
    let looking: BTreeSet<&str> = rules()
        .filter(|rule| rule.find.is_some())
        .map(|rule| rule.code)
        .collect();
    assert_eq!(cases, looking);
    let codes: BTreeSet<&str> = rules().map(|rule| rule.code).collect();
    assert_eq!(codes.len(), rules().count(), "a code stands twice");
    for rule in rules() {
        for text in [
            rule.title,
            rule.why,
            rule.advice,
            rule.original,
            rule.source,
        ] {
            assert!(!text.is_empty() && !text.contains('|'), "{}", rule.code);
        }
        assert!(
            rule.why.ends_with('.') && rule.advice.ends_with('.'),
            "{}",
            rule.code
        );
    }
}

#[test]
fn a_disk_that_is_left_out_refuses_nothing() {
    let chosen = Request {
        disks: Some(vec!["OS".to_owned()]),
        ..Request::new(Target::Azure)
    };
    for (code, severity) in [
        ("SharedDisk", Severity::Warns),
        ("PassThroughDisk", Severity::Warns),
        ("DataDiskTooLarge", Severity::Warns),
    ] {
        let facts = cases().into_iter().find(|(one, _)| *one == code).unwrap().1;
        assert_eq!(found(&facts, &chosen, code)[0].severity, severity, "{code}");
    }
    let many = cases()
        .into_iter()
        .find(|(one, _)| *one == "TooManyDataDisks");
    assert_eq!(found(&many.unwrap().1, &chosen, "TooManyDataDisks"), []);
    // A disk without an id can't be chosen.
    let nameless = with(|vm| {
        vm.disks[1].id.clear();
        vm.disks[1].pass_through = Presence::Present;
    });
    assert_eq!(
        found(&nameless, &chosen, "PassThroughDisk")[0].severity,
        Severity::Warns
    );
}

#[test]
fn the_log_quota_of_the_policy_counts() {
    let facts = with(|vm| vm.disks[1].volume_free_bytes = Some(99 * GIB));
    let quota = |log_quota_percent| Request {
        log_quota_percent,
        ..Request::new(Target::RecoveryHost)
    };
    assert_eq!(found(&facts, &quota(49), "ChangeLogSpace"), []);
    assert_eq!(found(&facts, &quota(60), "ChangeLogSpace").len(), 1);
}

#[test]
fn the_worst_comes_first() {
    let facts = with(|vm| {
        vm.generation = 2;
        vm.secure_boot = Presence::Present;
        vm.fibre_channel = Presence::Present;
    });
    let severities: Vec<Severity> = judge(&facts, &Request::new(Target::Azure))
        .iter()
        .map(|finding| finding.severity)
        .collect();
    assert_eq!(
        severities,
        [Severity::Blocks, Severity::Warns, Severity::Lifted]
    );
}

fn any_presence() -> impl Strategy<Value = Presence> {
    prop_oneof![
        Just(Presence::Unknown),
        Just(Presence::NotPresent),
        Just(Presence::Present)
    ]
}

fn any_look() -> impl Strategy<Value = Look> {
    let table = prop_oneof![
        Just(Table::None),
        Just(Table::Mbr),
        Just(Table::Gpt),
        Just(Table::Damaged)
    ];
    let guest = prop_oneof![
        Just(Guest::Unknown),
        Just(Guest::Linux),
        Just(Guest::Windows)
    ];
    (table, 0..200_u32, any::<[bool; 5]>(), guest).prop_map(|(table, partitions, is, guest)| Look {
        table,
        partitions,
        dynamic_disk: is[0],
        bitlocker: is[1],
        luks: is[2],
        lvm: is[3],
        efi_system_partition: is[4],
        guest,
    })
}

fn any_disk() -> impl Strategy<Value = DiskFacts> {
    (
        "[a-d]{0,2}",
        prop_oneof![Just(0), any::<u64>()],
        any::<bool>(),
        prop_oneof![Just(0_u32), Just(512), Just(4096)],
        (any_presence(), any_presence()),
        "[0-2]?",
        proptest::option::of(any::<u64>()),
        proptest::option::of(any_look()),
    )
        .prop_map(
            |(id, size_bytes, operating_system, sector, (shared, passed), volume, free, look)| {
                DiskFacts {
                    name: format!("{id}.vhdx"),
                    id,
                    size_bytes,
                    operating_system,
                    logical_sector_bytes: sector,
                    shared,
                    pass_through: passed,
                    volume,
                    volume_free_bytes: free,
                    look,
                }
            },
        )
}

fn any_facts() -> impl Strategy<Value = Facts> {
    (
        0..3_u32,
        prop_oneof![Just(""), Just("Linux"), Just("Windows")],
        prop_oneof![Just(""), Just("x86"), Just("x86_64"), Just("aarch64")],
        [
            any_presence(),
            any_presence(),
            any_presence(),
            any_presence(),
        ],
        proptest::option::of(0..12_usize),
        proptest::collection::vec(any_disk(), 0..70),
    )
        .prop_map(
            |(generation, os_type, architecture, is, adapters, disks)| Facts {
                name: "vm".to_owned(),
                generation,
                os_type: os_type.to_owned(),
                os_name: String::new(),
                architecture: architecture.to_owned(),
                secure_boot: is[0],
                virtual_tpm: is[1],
                fibre_channel: is[2],
                checkpoints: is[3],
                adapters,
                disks,
            },
        )
}

/// The same VM with less known of it.
fn veiled(facts: &Facts, veil: &[bool]) -> Facts {
    let mut bits = veil.iter().copied().cycle();
    let mut hide = || bits.next().unwrap_or_default();
    let mut less = facts.clone();
    for presence in [
        &mut less.secure_boot,
        &mut less.virtual_tpm,
        &mut less.fibre_channel,
        &mut less.checkpoints,
    ] {
        if hide() {
            *presence = Presence::Unknown;
        }
    }
    if hide() {
        less.architecture.clear();
    }
    if hide() {
        less.os_type.clear();
    }
    if hide() {
        less.adapters = None;
    }
    for disk in &mut less.disks {
        if hide() {
            disk.shared = Presence::Unknown;
        }
        if hide() {
            disk.pass_through = Presence::Unknown;
        }
        if hide() {
            disk.logical_sector_bytes = 0;
        }
        if hide() {
            disk.volume_free_bytes = None;
        }
        if hide() {
            disk.look = None;
        }
    }
    less
}

fn blocking(facts: &Facts, request: &Request) -> BTreeSet<(&'static str, Subject)> {
    judge(facts, request)
        .into_iter()
        .filter(|finding| finding.severity == Severity::Blocks)
        .map(|finding| (finding.code, finding.subject))
        .collect()
}

proptest! {
    #[test]
    fn more_knowledge_never_hides_what_blocks(
        facts in any_facts(),
        veil in proptest::collection::vec(any::<bool>(), 1..64),
        azure in any::<bool>(),
    ) {
        let request = Request::new(if azure { Target::Azure } else { Target::RecoveryHost });
        let less = blocking(&veiled(&facts, &veil), &request);
        let more = blocking(&facts, &request);
        prop_assert!(less.is_subset(&more), "{less:?} is not all in {more:?}");
    }

    #[test]
    fn another_data_disk_never_hides_what_blocks(facts in any_facts(), another in any_disk()) {
        for target in Target::ALL {
            let request = Request::new(target);
            let before = blocking(&facts, &request);
            let mut more = facts.clone();
            more.disks.push(DiskFacts { operating_system: false, ..another.clone() });
            prop_assume!(!facts.disks.is_empty());
            prop_assert!(before.is_subset(&blocking(&more, &request)));
        }
    }

    #[test]
    fn leaving_disks_out_never_adds_what_blocks(
        facts in any_facts(),
        chosen in proptest::collection::vec("[a-d]{1,2}", 0..4),
    ) {
        for target in Target::ALL {
            let all = blocking(&facts, &Request::new(target));
            let some = blocking(&facts, &Request { disks: Some(chosen.clone()), ..Request::new(target) });
            // Of several codes and disks: the same disks, or none of them.
            let codes = |set: &BTreeSet<(&'static str, Subject)>| -> BTreeSet<&'static str> {
                set.iter().map(|(code, _)| *code).collect()
            };
            prop_assert!(codes(&some).is_subset(&codes(&all)));
        }
    }

    #[test]
    fn what_is_unknown_blocks_nothing(name in ".{0,20}", generation in 0..3_u32) {
        let facts = Facts { name, generation, ..Facts::default() };
        for target in Target::ALL {
            prop_assert!(blocking(&facts, &Request::new(target)).is_empty());
        }
    }
}
