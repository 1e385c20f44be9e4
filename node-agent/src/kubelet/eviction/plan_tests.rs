use super::*;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + seconds).unwrap()
}

const GI: u64 = 1 << 30;
const MI: u64 = 1 << 20;

fn memory(available: u64) -> Levels {
    let level = Level {
        available,
        capacity: 8 * GI,
    };
    Levels::from([(Signal::MemoryAvailable, level)])
}

#[test]
fn thresholds_are_read_or_refused() {
    let parsed = parse(DEFAULT).unwrap();
    assert_eq!(parsed[0].below, Amount::Absolute(100 * MI));
    assert_eq!(parsed[1].below, Amount::Percent(10.0));
    assert_eq!(parse("").unwrap(), []);
    for bad in [
        "memory",
        "memory.available<x",
        "cpu.available<1",
        "pid.available<101%",
    ] {
        assert!(parse(bad).is_err(), "{bad}");
    }
}

#[test]
fn a_hard_threshold_acts_at_once_and_its_condition_lingers() {
    let thresholds = parse(DEFAULT).unwrap();
    let mut history = History::default();
    let fine = judge(&mut history, &thresholds, &memory(GI), at(0));
    assert_eq!(fine, Verdict::default());
    let short = judge(&mut history, &thresholds, &memory(50 * MI), at(10));
    assert_eq!(short.pressure, BTreeSet::from([Pressure::Memory]));
    let shortage = Shortage {
        signal: Signal::MemoryAvailable,
        threshold: 100 * MI,
        available: 50 * MI,
        hard: true,
    };
    assert_eq!(short.shortages, [shortage]);
    let after = judge(&mut history, &thresholds, &memory(GI), at(20));
    assert_eq!(after.pressure, BTreeSet::from([Pressure::Memory]));
    assert_eq!(after.shortages, []);
    let later = judge(&mut history, &thresholds, &memory(GI), at(310));
    assert_eq!(later, Verdict::default());
    // A clock that was set back by an hour does not keep it either.
    judge(&mut history, &thresholds, &memory(50 * MI), at(400));
    let jumped = judge(&mut history, &thresholds, &memory(GI), at(-3200));
    assert_eq!(jumped.pressure, BTreeSet::new());
}

#[test]
fn a_soft_threshold_waits_and_forgets() {
    let thresholds = [Threshold {
        signal: Signal::MemoryAvailable,
        below: Amount::Percent(25.0),
        grace: Some(Duration::from_secs(90)),
    }];
    let mut history = History::default();
    let mut run = |available, seconds| {
        let verdict = judge(&mut history, &thresholds, &memory(available), at(seconds));
        (verdict.pressure.len(), verdict.shortages.len())
    };
    assert_eq!(run(GI, 0), (1, 0));
    assert_eq!(run(GI, 89), (1, 0));
    assert_eq!(run(GI, 90), (1, 1));
    assert_eq!(run(4 * GI, 100), (1, 0));
    // It begins anew.
    assert_eq!(run(GI, 110), (1, 0));
}

fn candidate(uid: &str, priority: i32, used: u64, request: u64) -> Candidate {
    Candidate {
        uid: uid.into(),
        priority,
        critical: false,
        containers: vec![Share {
            name: "c".into(),
            memory: used * MI,
            memory_request: request * MI,
            pids: used,
            ..Default::default()
        }],
    }
}

#[test]
fn who_takes_more_than_it_asked_for_goes_first() {
    let pods = [
        candidate("within-low", 0, 900, 1000),
        candidate("above-high", 10, 500, 100),
        candidate("above-low", 0, 200, 150),
        candidate("above-low-more", 0, 300, 100),
    ];
    let mut order = Vec::new();
    let mut left = pods.to_vec();
    while let Some(next) = victim(Signal::MemoryAvailable, &left).cloned() {
        left.retain(|c| c.uid != next.uid);
        order.push(next.uid);
    }
    assert_eq!(
        order,
        ["above-low-more", "above-low", "above-high", "within-low"]
    );
    // Processes have no requests: priority, then how many.
    assert_eq!(
        victim(Signal::PidAvailable, &pods).map(|c| c.uid.as_str()),
        Some("within-low")
    );
    let critical = Candidate {
        critical: true,
        ..candidate("a", 0, 100, 0)
    };
    assert_eq!(victim(Signal::MemoryAvailable, &[critical]), None);
}

#[test]
fn the_message_is_what_kubernetes_users_know() {
    let shortage = Shortage {
        signal: Signal::MemoryAvailable,
        threshold: 100 * MI,
        available: 50 * MI + 1000,
        hard: true,
    };
    assert_eq!(
        message(&shortage, &candidate("a", 0, 300, 0)),
        "The node was low on resource: memory. Threshold quantity: 100Mi, available: 51200Ki. \
         Container c was using 300Mi, request is 0, has larger consumption of memory. "
    );
}
