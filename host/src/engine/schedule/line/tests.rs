//! The order of turns and everybody's share, without clocks: what a slice takes is what the test says.

use super::*;

const MS: Duration = Duration::from_millis(1);

/// A tenant with one function.
fn tenant(name: &str) -> Whose {
    Whose { tenant: name.parse().unwrap(), function: 0 }
}

/// A line whose wakers are the tenants' names, and the number of the next place.
#[derive(Default)]
struct Thread {
    line: Line<&'static str>,
    next: u64,
}

impl Thread {
    fn join(&mut self, name: &'static str, age: Age) -> Place {
        self.next += 1;
        let place = Place { number: self.next, age };
        self.line.join(&tenant(name), place, name);
        place
    }

    fn joins(&mut self, count: usize, name: &'static str, age: Age) {
        for _ in 0..count {
            self.join(name, age);
        }
    }

    /// Whoever is next runs for what `takes` says, and gets in line again.
    fn turn(&mut self, takes: impl Fn(&str) -> Duration) -> &'static str {
        let (_, name) = self.line.next().unwrap();
        self.line.charge(&tenant(name), Age::Old, takes(name));
        self.join(name, Age::Old);
        name
    }

    /// What each of `names` got in so many turns, in microseconds.
    fn shares<const N: usize>(&mut self, names: [&str; N], turns: usize, takes: impl Fn(&str) -> Duration) -> [u128; N] {
        let mut shares = [0; N];
        for _ in 0..turns {
            let name = self.turn(&takes);
            let at = names.iter().position(|one| *one == name).unwrap();
            shares[at] += takes(name).as_micros();
        }
        shares
    }
}

#[test]
fn a_hundred_guests_and_one_get_the_same() {
    let mut thread = Thread::default();
    thread.joins(100, "many", Age::Old);
    thread.joins(1, "one", Age::Old);
    assert_eq!(thread.shares(["many", "one"], 1000, |_| MS), [500_000, 500_000]);
    // And take turns, so that nobody waits for longer than a slice of another's.
    let order: Vec<_> = (0..6).map(|_| thread.turn(|_| MS)).collect();
    assert!(order.windows(2).all(|two| two[0] != two[1]), "{order:?}");
}

#[test]
fn shares_are_of_time_and_not_of_turns() {
    let mut thread = Thread::default();
    thread.joins(3, "long", Age::Old);
    thread.joins(1, "short", Age::Old);
    let takes = |name: &str| if name == "long" { 3 * MS } else { MS / 4 };
    let [long, short] = thread.shares(["long", "short"], 13_000, takes);
    assert!(long.abs_diff(short) <= 4_000, "{long} and {short} us: not more apart than a slice and a quantum");
}

#[test]
fn three_tenants_share_in_thirds() {
    let mut thread = Thread::default();
    for (count, name) in [(5, "a"), (1, "b"), (64, "c")] {
        thread.joins(count, name, Age::Old);
    }
    assert_eq!(thread.shares(["a", "b", "c"], 900, |_| MS), [300_000; 3]);
}

#[test]
fn within_a_tenant_it_is_the_order_of_coming() {
    let mut thread = Thread::default();
    let places: Vec<_> = (0..4).map(|_| thread.join("a", Age::Old).number).collect();
    let order: Vec<_> = (0..4).map(|_| thread.line.next().unwrap().0).collect();
    assert_eq!(order, places);
    assert_eq!(thread.line.next(), None);
}

#[test]
fn the_young_of_a_tenant_get_half_and_not_more() {
    let mut line: Line<Age> = Line::default();
    let a = tenant("a");
    let mut number = 0;
    let mut join = |line: &mut Line<Age>, age| {
        number += 1;
        line.join(&a, Place { number, age }, age);
    };
    for _ in 0..32 {
        join(&mut line, Age::Old);
        join(&mut line, Age::Young);
    }
    assert_eq!(line.next().unwrap().1, Age::Young, "the last who came is young, and does not wait for 32");
    let (mut young, mut old) = (0, 0);
    for _ in 0..1000 {
        let (_, age) = line.next().unwrap();
        let took = if age == Age::Young { MS / 10 } else { MS };
        *(if age == Age::Young { &mut young } else { &mut old }) += took.as_micros();
        line.charge(&a, age, took);
        join(&mut line, age);
    }
    assert!(young.abs_diff(old) <= 2_000, "{young} and {old} us");
}

#[test]
fn a_flood_of_one_function_does_not_keep_another_of_its_tenant() {
    let function = |function| Whose { function, ..tenant("a") };
    for age in [Age::Young, Age::Old] {
        let mut line: Line<usize> = Line::default();
        let mut number = 0;
        let mut join = |line: &mut Line<usize>, which| {
            number += 1;
            line.join(&function(which), Place { number, age }, which);
        };
        (0..450).for_each(|_| join(&mut line, 1));
        let turn = |line: &mut Line<usize>| {
            let (_, which) = line.next().unwrap();
            line.charge(&function(which), age, MS);
            which
        };
        assert_eq!(turn(&mut line), 1);
        join(&mut line, 2);
        assert_eq!(turn(&mut line), 2, "the 450 that came before it have had their share");
        // And by time: one that takes little of it has more turns.
        join(&mut line, 2);
        let mut turns = [0; 2];
        for _ in 0..1100 {
            let (_, which) = line.next().unwrap();
            line.charge(&function(which), age, if which == 1 { MS } else { MS / 10 });
            join(&mut line, which);
            turns[which - 1] += 1;
        }
        assert!((95..=105).contains(&turns[0]), "{turns:?} turns of 1 ms and of a tenth");
    }
}

#[test]
fn one_that_begins_at_once_shares_with_those_of_its_tenant_who_wait() {
    let function = |function| Whose { function, ..tenant("a") };
    let mut number = 0;
    let mut join = |line: &mut Line<usize>, which, age| {
        number += 1;
        line.join(&function(which), Place { number, age }, which);
    };
    for (starts, old) in [(MS / 4, false), (2 * MS, false), (MS / 4, true), (2 * MS, true)] {
        let mut line: Line<usize> = Line::default();
        assert!(line.may_overtake(&function(1), Age::Young), "nobody waits");
        join(&mut line, 2, Age::Young);
        if old {
            join(&mut line, 3, Age::Old);
        }
        let mut got = [Duration::ZERO; 3];
        for _ in 0..3000 {
            // It comes as often as it may begin at once.
            while line.may_overtake(&function(1), Age::Young) {
                line.charge(&function(1), Age::Young, starts);
                got[0] += starts;
            }
            let (_, which) = line.next().unwrap();
            let age = if which == 3 { Age::Old } else { Age::Young };
            line.charge(&function(which), age, MS);
            got[which - 1] += MS;
            join(&mut line, which, age);
        }
        assert!(got[0] <= got[1] + 10 * MS, "{starts:?}, {old}: {got:?}, the flood, who waits, and who is old");
        let rest = if old { got[2] } else { got[1] };
        assert!(got[1] * 3 >= rest && got[1] >= 700 * MS, "{starts:?}, {old}: {got:?}");
    }
}

#[test]
fn nobody_overtakes_those_of_its_own_function() {
    let mut line: Line<()> = Line::default();
    let [one, other] = [2, 4].map(|function| Whose { function, ..tenant("a") });
    let place = Place { number: 1, age: Age::Young };
    line.join(&one, place, ());
    assert!(!line.may_overtake(&one, Age::Young), "it comes behind");
    assert!(line.may_overtake(&other, Age::Young) && line.may_overtake(&one, Age::Old), "those share");
    // Nor does a request stand behind an instance that is made ahead.
    let ahead = Place { number: 2, age: Age::Young };
    line.join(&other.ahead(), ahead, ());
    assert!(line.may_overtake(&other, Age::Young));
    line.leave(&other.ahead(), ahead).unwrap();
    line.leave(&one, place).unwrap();
    assert!(line.may_overtake(&one, Age::Young));
}

#[test]
fn a_rush_is_not_paid_for_for_long() {
    let mut line: Line<Age> = Line::default();
    let a = tenant("a");
    let mut number = 0;
    let mut join = |line: &mut Line<Age>, age| {
        number += 1;
        line.join(&a, Place { number, age }, age);
    };
    join(&mut line, Age::Old);
    join(&mut line, Age::Young);
    line.charge(&a, Age::Young, Duration::from_secs(10));
    let turns = (0..20).position(|_| {
        let (_, age) = line.next().unwrap();
        line.charge(&a, age, MS);
        join(&mut line, age);
        age == Age::Young
    });
    assert!(turns.is_some_and(|turns| turns <= 5), "{turns:?} turns before that of the young");
}

#[test]
fn bursts_come_out_of_a_tenants_own_share() {
    let mut thread = Thread::default();
    thread.joins(1, "steady", Age::Old);
    let bursts = tenant("bursts");
    let mut got = Duration::ZERO;
    let mut steady = Duration::ZERO;
    for _ in 0..1000 {
        // It never waits in line: it comes as often as it may begin at once.
        while thread.line.has_credit(&bursts) {
            thread.line.charge(&bursts, Age::Young, MS / 10);
            got += MS / 10;
        }
        assert_eq!(thread.turn(|_| MS), "steady");
        steady += MS;
    }
    assert!(got <= steady + MS, "{got:?} of bursts beside {steady:?}");
    assert!(got >= steady - 2 * MS, "{got:?} of bursts beside {steady:?}: nor less than its share");
}

#[test]
fn debt_is_paid_before_the_next_turn() {
    let mut thread = Thread::default();
    thread.joins(1, "bulk", Age::Old);
    thread.joins(1, "other", Age::Old);
    // One operation that nothing could interrupt.
    assert_eq!(thread.turn(|_| 100 * MS), "bulk");
    let others = (0..98).filter(|_| thread.turn(|_| MS) == "other").count();
    assert_eq!(others, 98);
    assert_eq!(thread.shares(["bulk", "other"], 1000, |_| MS).iter().sum::<u128>(), 1_000_000);
    // Nor is it escaped by leaving the line.
    let mut thread = Thread::default();
    thread.joins(1, "other", Age::Old);
    thread.line.charge(&tenant("bulk"), Age::Young, 100 * MS);
    for _ in 0..98 {
        assert!(!thread.line.has_credit(&tenant("bulk")));
        thread.turn(|_| MS);
    }
    for _ in 0..3 {
        thread.turn(|_| MS);
    }
    assert!(thread.line.has_credit(&tenant("bulk")));
    assert_eq!(thread.line.tenants.len(), 1, "and who owes nothing and does not wait is forgotten");
}

#[test]
fn a_debt_without_a_rival_costs_no_time() {
    let mut thread = Thread::default();
    thread.joins(2, "a", Age::Old);
    thread.line.charge(&tenant("a"), Age::Old, Duration::from_secs(1 << 40));
    assert!(!thread.line.has_credit(&tenant("a")) && !thread.line.others_wait(&tenant("a")));
    assert_eq!(thread.turn(|_| MS), "a");
    assert_eq!(thread.turn(|_| MS), "a");
}

#[test]
fn who_leaves_leaves_nothing() {
    let mut thread = Thread::default();
    let (first, second) = (thread.join("a", Age::Young), thread.join("a", Age::Old));
    let third = thread.join("b", Age::Old);
    assert!(thread.line.others_wait(&tenant("a")) && thread.line.others_wait(&tenant("b")));
    assert_eq!((thread.line.leave(&tenant("b"), third), thread.line.leave(&tenant("b"), third)), (Some("b"), None));
    assert!(!thread.line.others_wait(&tenant("a")) && thread.line.others_wait(&tenant("c")));
    assert!(thread.line.waiter(&tenant("a"), second).is_some() && thread.line.waiter(&tenant("a"), third).is_none());
    assert_eq!(thread.line.leave(&tenant("a"), Place { age: Age::Old, ..first }), None, "it is of the other age");
    assert!(thread.line.leave(&tenant("a"), first).is_some());
    assert_eq!(thread.line.next(), Some((second.number, "a")));
    assert!(thread.line.leave(&tenant("a"), second).is_none(), "its turn has come");
    assert_eq!((thread.line.len(), thread.line.next()), (0, None));
    thread.line.settle();
    assert_eq!(thread.line.tenants.len(), 0);
}

#[test]
fn the_old_who_wait_are_counted() {
    let mut thread = Thread::default();
    let old = thread.join("a", Age::Old);
    thread.joins(2, "a", Age::Young);
    thread.joins(1, "b", Age::Old);
    assert!(thread.line.old_wait());
    thread.line.leave(&tenant("a"), old).unwrap();
    assert!(thread.line.old_wait());
    while thread.line.len() > 0 {
        thread.line.next().unwrap();
    }
    assert!(!thread.line.old_wait());
}
