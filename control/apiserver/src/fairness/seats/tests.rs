use serde_json::json;

use super::*;

fn level(name: &str, shares: u32, lendable: u32, borrowing: Option<u32>, queue: Value) -> Value {
    let mut limited = json!({
        "nominalConcurrencyShares": shares, "lendablePercent": lendable, "limitResponse": queue,
    });
    if let Some(borrowing) = borrowing {
        limited["borrowingLimitPercent"] = borrowing.into();
    }
    json!({"metadata": {"name": name}, "spec": {"type": "Limited", "limited": limited}})
}

fn queues(queues: u32, hand: u32, length: u32) -> Value {
    json!({"type": "Queue", "queuing": {"queues": queues, "handSize": hand, "queueLengthLimit": length}})
}

fn reject() -> Value {
    json!({"type": "Reject"})
}

fn seats(levels: &[Value], total: u32) -> Seats {
    let mut seats = Seats::default();
    seats.configure(Limits::of_levels(levels, total));
    seats
}

fn granted(asked: Asked) -> Grant {
    match asked {
        Asked::Granted(grant) => grant,
        other => panic!("{other:?}"),
    }
}

fn queued(asked: Asked) -> oneshot::Receiver<Grant> {
    match asked {
        Asked::Queued { granted, .. } => granted,
        other => panic!("{other:?}"),
    }
}

const SOON: Duration = Duration::from_millis(1);

#[test]
fn seats_are_shared_out_as_upstream_does() {
    let limits = Limits::of_levels(
        &[
            level("a", 30, 33, None, reject()),
            level("b", 10, 0, Some(50), queues(8, 2, 5)),
            json!({"metadata": {"name": "e"}, "spec": {"type": "Exempt", "exempt": {"nominalConcurrencyShares": 0}}}),
        ],
        100,
    );
    assert_eq!((limits["a"].nominal, limits["a"].lendable), (75, 25));
    assert_eq!((limits["b"].nominal, limits["b"].borrowing), (25, Some(13)));
    assert!(limits["e"].exempt);
}

#[test]
fn hands_are_of_different_queues() {
    for flow in [0, 1, 7, 12345, u64::MAX] {
        for (queues, size) in [(1, 1), (8, 8), (64, 6), (128, 6)] {
            let mut hand = deal(flow, queues, size);
            assert!(hand.iter().all(|card| *card < queues));
            hand.sort_unstable();
            hand.dedup();
            assert_eq!(hand.len(), size);
        }
    }
}

#[test]
fn a_level_without_queues_refuses_and_one_with_queues_waits() {
    let mut seats = seats(
        &[
            level("r", 1, 0, Some(0), reject()),
            level("q", 1, 0, Some(0), queues(1, 1, 1)),
        ],
        2,
    );
    let first = granted(seats.ask("r", "s", 1, 1));
    assert!(matches!(seats.ask("r", "s", 1, 1), Asked::Refused));
    seats.release(first, SOON);
    drop(granted(seats.ask("r", "s", 1, 1)));

    let first = granted(seats.ask("q", "s", 1, 1));
    let mut second = queued(seats.ask("q", "s", 1, 1));
    assert!(matches!(seats.ask("q", "s", 1, 1), Asked::Refused));
    assert!(second.try_recv().is_err());
    seats.release(first, SOON);
    let second = second.try_recv().unwrap();
    seats.release(second, SOON);
    assert_eq!(seats.levels["q"].taken, 0);
}

#[test]
fn idle_seats_are_lent_and_come_back() {
    let levels = [
        level("big", 1, 50, Some(0), queues(1, 1, 9)),
        level("small", 1, 0, None, queues(1, 1, 9)),
    ];
    let mut seats = seats(&levels, 8);
    // Four of its own and two of the other's four.
    let taken: Vec<Grant> = (0..6)
        .map(|_| granted(seats.ask("small", "s", 1, 1)))
        .collect();
    let _waits = queued(seats.ask("small", "s", 1, 1));
    assert_eq!(
        (seats.levels["big"].lent, seats.levels["small"].borrowed),
        (2, 2)
    );
    let own: Vec<Grant> = (0..2)
        .map(|_| granted(seats.ask("big", "s", 1, 1)))
        .collect();
    let mut third = queued(seats.ask("big", "s", 1, 1));
    // A lender that waits itself gets its seat back before the borrower's next request.
    let borrowed = taken
        .into_iter()
        .find(|grant| grant.taken.0.iter().any(|(owner, _)| owner == "big"))
        .unwrap();
    seats.release(borrowed, SOON);
    assert!(third.try_recv().is_ok());
    drop(own);
}

#[test]
fn a_flow_that_floods_cannot_keep_others_waiting() {
    let mut seats = seats(&[level("l", 1, 0, Some(0), queues(2, 1, 1000))], 1);
    let running = granted(seats.ask("l", "s", 0, 1));
    let mut flood: VecDeque<_> = (0..100)
        .map(|_| queued(seats.ask("l", "s", 0, 1)))
        .collect();
    let mut polite = queued(seats.ask("l", "s", 1, 1));
    seats.release(running, Duration::from_millis(100));
    // The other flow's queue has had less, so it is next, before a hundred that came earlier.
    let grant = polite.try_recv().unwrap();
    seats.release(grant, SOON);
    assert!(flood.pop_front().unwrap().try_recv().is_ok());
}

#[test]
fn who_leaves_the_queue_takes_no_seat() {
    let mut seats = seats(&[level("l", 1, 0, Some(0), queues(1, 1, 5))], 1);
    let running = granted(seats.ask("l", "s", 0, 1));
    let gone = queued(seats.ask("l", "s", 0, 1));
    drop(gone);
    let Asked::Queued {
        ticket,
        granted: left,
    } = seats.ask("l", "s", 0, 1)
    else {
        panic!()
    };
    seats.leave("l", ticket);
    drop(left);
    let mut last = queued(seats.ask("l", "s", 0, 1));
    seats.release(running, SOON);
    let grant = last.try_recv().unwrap();
    seats.release(grant, SOON);
    let level = &seats.levels["l"];
    assert_eq!((level.taken, level.executing, level.waiting), (0, 0, 0));
}

#[test]
fn a_new_configuration_keeps_who_is_there() {
    let mut seats = seats(&[level("l", 1, 0, Some(0), queues(4, 1, 9))], 1);
    let running = granted(seats.ask("l", "s", 0, 1));
    let mut waiting: Vec<_> = (0..4)
        .map(|flow| queued(seats.ask("l", "s", flow, 1)))
        .collect();
    seats.configure(Limits::of_levels(
        &[level("l", 1, 0, Some(0), queues(2, 1, 9))],
        3,
    ));
    let served = waiting.iter_mut().filter_map(|w| w.try_recv().ok());
    assert_eq!(served.collect::<Vec<_>>().len(), 2);
    seats.configure(BTreeMap::new());
    assert!(seats.levels.contains_key("l"));
    seats.release(running, SOON);
    assert!(matches!(seats.ask("gone", "s", 0, 1), Asked::Refused));
}

#[test]
fn a_wide_request_takes_several_seats_and_waits_for_them() {
    let mut seats = seats(&[level("l", 1, 0, Some(0), queues(1, 1, 9))], 20);
    let wide = granted(seats.ask("l", "s", 1, 100));
    // 15 % of 20.
    assert_eq!((wide.taken.width(), seats.levels["l"].taken), (3, 3));
    let rest: Vec<Grant> = (0..16)
        .map(|_| granted(seats.ask("l", "s", 1, 1)))
        .collect();
    let mut second = queued(seats.ask("l", "s", 1, 2));
    // One seat is free, and whoever came first gets the next two.
    let mut third = queued(seats.ask("l", "s", 1, 1));
    seats.release(wide, SOON);
    assert_eq!(second.try_recv().map(|grant| grant.taken.width()), Ok(2));
    assert!(third.try_recv().is_ok());
    drop(rest);
}

proptest::proptest! {
    /// Whatever happens, a seat is held by one request, and nobody waits beside a free seat of its own level.
    #[test]
    fn seats_are_never_lost_and_never_given_twice(
        steps in proptest::collection::vec((0..5_u8, 0..3_usize, proptest::num::u64::ANY), 1..200),
    ) {
        let names = ["a", "b", "c"];
        let mut seats = seats(
            &[
                level("a", 2, 50, None, queues(4, 2, 3)),
                level("b", 1, 0, Some(50), queues(1, 1, 2)),
                level("c", 1, 100, Some(0), reject()),
            ],
            40,
        );
        let mut held: Vec<Grant> = Vec::new();
        let mut waiting: Vec<(&str, u64, oneshot::Receiver<Grant>)> = Vec::new();
        for (what, which, n) in steps {
            let at = |length: usize| usize::try_from(n % length.max(1) as u64).unwrap();
            match what {
                0..=2 => match seats.ask(names[which], "s", n, 1 + (n % 3) as u32) {
                    Asked::Granted(grant) => held.push(grant),
                    Asked::Queued { ticket, granted } => waiting.push((names[which], ticket, granted)),
                    Asked::Refused | Asked::Exempt => {}
                },
                3 if !held.is_empty() => {
                    let grant = held.swap_remove(at(held.len()));
                    seats.release(grant, Duration::from_millis(n % 50));
                }
                4 if !waiting.is_empty() => {
                    let (name, ticket, granted) = waiting.swap_remove(at(waiting.len()));
                    drop(granted);
                    seats.leave(name, ticket);
                }
                _ => {}
            }
            waiting.retain_mut(|(_, _, granted)| match granted.try_recv() {
                Ok(grant) => {
                    held.push(grant);
                    false
                }
                Err(_) => true,
            });
            let sum = |of: fn(&Level) -> u32| seats.levels.values().map(of).sum::<u32>() as usize;
            let seats_held: u32 = held.iter().map(|grant| grant.taken.width()).sum();
            proptest::prop_assert_eq!(sum(|level| level.executing), seats_held as usize);
            proptest::prop_assert_eq!(sum(|level| level.taken), seats_held as usize);
            proptest::prop_assert_eq!(sum(|level| level.lent), sum(|level| level.borrowed));
            for level in seats.levels.values() {
                proptest::prop_assert!(level.taken <= level.limits.nominal);
                proptest::prop_assert!(level.lent <= level.limits.lendable);
                let fits = level.next_width().is_some_and(|w| level.taken + w <= level.limits.nominal);
                proptest::prop_assert!(!fits, "somebody waits beside free seats");
            }
        }
        waiting.clear();
        for grant in held {
            seats.release(grant, SOON);
        }
        for level in seats.levels.values() {
            proptest::prop_assert_eq!((level.taken, level.executing, level.lent, level.borrowed), (0, 0, 0, 0));
        }
    }
}
