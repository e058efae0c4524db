//! `kontiki sim --explore`: every short run of the consensus core.

use super::exit::Exit;
use crate::sim::explore::{Allowance, Bounds, NODES_MAX, Plant, Report, UNBOUNDED, explore};
use std::ffi::OsString;
use std::time::Instant;

/// Flags beside one for each [`Allowance`]: name, value (none for a switch), text.
#[rustfmt::skip]
pub(super) const FLAGS: &[(&str, &str, &str)] = &[
    ("nodes", "N", "nodes, 1 to 4 (default 3)"),
    ("voters", "N", "the first N nodes vote in the beginning, the others are no members (default: all vote)"),
    ("differ", "N", "a change adds and removes at most N voters, both together (default 4: any change)"),
    ("led", "", "node 1 leads term 1 in the beginning, and nothing that it has sent will arrive (default: nobody leads)"),
    ("terms", "N", "no node gets beyond this term (default 2)"),
    ("once", "", "a message that has arrived is gone (default: it may arrive again, at any time)"),
    ("pre-votes", "", "pre-votes are messages like all others (default: as many are granted as are needed)"),
    ("in-flight", "N", "messages in flight at a time (default: no bound)"),
    ("writes", "N", "requests under way at one disk, 0 for disks that take no time (default: no bound)"),
    ("states", "N", "give up after so many states"),
    ("plant", "BUG", "a bug around the core, to see it found: forgotten-votes, lost-entry, early-reports, forged-terms, direct-changes or early-changes"),
];

/// How often something may happen in one run, for the help text: name, value, text.
pub(super) fn allowances() -> impl Iterator<Item = (&'static str, &'static str, String)> {
    let bounds = Bounds::default();
    Allowance::ALL.into_iter().map(move |(what, name, text)| {
        (name, "N", format!("{text} (default {})", bounds.allowed[what as usize]))
    })
}

/// Explores. Exit code 1 when an invariant was broken.
pub(super) fn run(args: &[OsString]) -> Exit {
    let bounds = match bounds(args) {
        Ok(bounds) => bounds,
        Err(why) => {
            eprintln!("kontiki sim --explore: {why}");
            return Exit::Usage;
        }
    };
    let started = Instant::now();
    let progress = |r: &Report| {
        let seconds = started.elapsed().as_secs_f64();
        eprintln!("depth {}: {} states, {} new, {seconds:.1} s", r.depth, r.states, r.open);
    };
    match explore(&bounds, progress) {
        Ok(report) => {
            print(&report);
            let seconds = started.elapsed().as_secs_f64();
            let verdict = if report.exhausted { "everything" } else { "NOT everything" };
            println!("{verdict} within the bounds, in {seconds:.1} s: ok");
            Exit::Done
        }
        Err(failed) => {
            for step in &failed.path {
                println!("{step}");
            }
            print(&failed.report);
            println!("{}", failed.violation.detail);
            println!("FAILED {}", failed.violation.invariant);
            Exit::ConditionFalse
        }
    }
}

fn print(report: &Report) {
    for (name, times) in &report.sights {
        println!("{times:>12}  {name}");
    }
    for (bound, times) in &report.cut {
        println!("{times:>12}  events over the bound on {bound}");
    }
    println!("{:>12}  states of one node, {} messages", report.node_states, report.messages);
    println!("{:>12}  states if the names of the nodes counted", report.named_states);
    println!("states {}", report.states);
    println!("transitions {}", report.transitions);
    println!("depth {}", report.depth);
}

/// The bounds that the flags ask for; what they do not mention is as by default.
fn bounds(args: &[OsString]) -> Result<Bounds, String> {
    let mut flags = getopts::Options::new();
    flags.optflag("", "explore", "");
    for (name, value, _) in FLAGS {
        match *value {
            "" => flags.optflag("", name, ""),
            value => flags.optopt("", name, "", value),
        };
    }
    for (name, value, _) in allowances() {
        flags.optopt("", name, "", value);
    }
    let found = flags.parse(args).map_err(|e| e.to_string())?;
    if let Some(word) = found.free.first() {
        return Err(format!("unexpected word '{word}'; see kontiki help sim"));
    }
    let number = |name: &str, least: u64, most: u64| {
        let Some(text) = found.opt_str(name) else { return Ok(None) };
        match text.parse::<u64>() {
            Ok(n) if (least..=most).contains(&n) => Ok(Some(n)),
            Ok(_) => Err(format!("flag --{name}: from {least} to {most}")),
            Err(e) => Err(format!("flag --{name}: {e}")),
        }
    };
    let any = |name| number(name, 0, 1 << 31).map(|n| n.map(|n| n as usize));
    let (pre_votes, once) = (found.opt_present("pre-votes"), found.opt_present("once"));
    let mut bounds = Bounds { pre_votes, once, ..Bounds::default() };
    if let Some(nodes) = number("nodes", 1, NODES_MAX as u64)? {
        bounds.nodes = nodes;
    }
    bounds.led = found.opt_present("led");
    bounds.voters = number("voters", 1, bounds.nodes)?;
    if let Some(differ) = number("differ", 1, NODES_MAX as u64)? {
        bounds.differ = differ as u32;
    }
    if let Some(terms) = number("terms", 1, 100)? {
        bounds.terms = terms;
    }
    bounds.in_flight = any("in-flight")?;
    bounds.writes = any("writes")?.unwrap_or(bounds.writes);
    bounds.states_max = any("states")?.unwrap_or(bounds.states_max);
    for (what, name, _) in Allowance::ALL {
        if what == Allowance::Timeouts && found.opt_str(name).as_deref() == Some("any") {
            bounds = bounds.with(what, UNBOUNDED);
        } else if let Some(count) = number(name, 0, 100)? {
            bounds = bounds.with(what, count as u8);
        }
    }
    if let Some(name) = found.opt_str("plant") {
        let plant = Plant::ALL.iter().find(|(_, known)| *known == name);
        bounds.plant = plant.ok_or_else(|| format!("flag --plant: no bug '{name}'"))?.0;
    }
    if let Some(why) = bounds.endless() {
        return Err(why.to_owned());
    }
    Ok(bounds)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Bounds, String> {
        bounds(&line.split_whitespace().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn every_flag_sets_its_bound_and_leaves_the_others() {
        // The defaults, then each kind of flag.
        let default = parse("--explore").unwrap();
        assert_eq!(default.allowed, Bounds::default().allowed);
        assert!(!default.once && default.in_flight.is_none());
        let b = parse("--explore --once --nodes 2 --in-flight 3 --reads 2 --timeouts any").unwrap();
        assert_eq!((b.once, b.nodes, b.in_flight), (true, 2, Some(3)));
        assert_eq!(b.allowed[Allowance::Reads as usize], 2);
        assert_eq!(b.allowed[Allowance::Timeouts as usize], UNBOUNDED);
        assert_eq!(b.allowed[Allowance::Crashes as usize], 1);
        assert_eq!((b.voters, b.led, b.differ as usize), (None, false, NODES_MAX));
        let b = parse("--explore --nodes 4 --voters 3 --led --differ 1 --changes 2").unwrap();
        assert_eq!((b.voters, b.led, b.differ), (Some(3), true, 1));
        assert_eq!(b.allowed[Allowance::Changes as usize], 2);
        assert_eq!(parse("--explore --plant lost-entry").unwrap().plant, Plant::LostEntry);
    }

    #[test]
    fn bounds_that_cannot_be_are_refused_with_a_reason() {
        // Nothing is explored by mistake, and nothing without an end.
        for (line, reason) in [
            ("--nodes 5", "flag --nodes: from 1 to 4"),
            ("--nodes 2 --voters 3", "flag --voters: from 1 to 2"),
            ("--terms x", "flag --terms: invalid digit"),
            ("--reads 1", "reads have no end"),
            ("--plant gremlins", "flag --plant: no bug 'gremlins'"),
            ("--crashes any", "flag --crashes: invalid digit"),
            ("again", "unexpected word 'again'"),
        ] {
            let why = parse(&format!("--explore {line}")).unwrap_err();
            assert!(why.contains(reason), "{line}: {why}");
        }
    }
}
