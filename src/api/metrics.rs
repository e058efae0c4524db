//! `GET /metrics`: what a node counts, as text in the form of Prometheus
//! (<https://prometheus.io/docs/instrumenting/exposition_formats/>).
//!
//! So far what the store does and holds, its three amplifications among it, and the log's size.

use super::NodeState;
use crate::kv::{Reader as _, StoreStats, View as _};
use std::fmt::Write as _;
use std::sync::atomic::Ordering;

/// The page.
pub(super) fn text(state: &NodeState) -> String {
    let mut page = Page(String::new());
    let applied = state.reader.view().applied();
    page.gauge("kontiki_applied_index", "Last log index in the store.", applied as f64);
    let log = state.log_bytes.load(Ordering::Relaxed);
    page.gauge("kontiki_log_bytes", "Bytes in use in the log.", log as f64);
    let connections = state.connections.load(Ordering::Relaxed);
    page.gauge("kontiki_connections", "Connections that are served now.", connections as f64);
    let help = "Connections of clients that are served at a time; fewer than --max-connections where the \
                machine gives no more.";
    let max = state.connections_max.load(Ordering::Relaxed);
    page.gauge("kontiki_connections_max", help, max as f64);
    let help = "Requests that wait for an answer of the replica, or to be read.";
    page.gauge("kontiki_requests_under_way", help, state.load.under_way() as f64);
    let help = "Requests that may be under way; more than the least there is only after more were.";
    page.gauge("kontiki_requests_under_way_max", help, state.load.limit() as f64);
    let help = "Requests refused as busy because too many were under way.";
    page.counter("kontiki_requests_refused_total", help, state.load.refused());
    let help = "Bytes that answers hold which clients have not taken yet.";
    page.gauge("kontiki_answer_bytes", help, state.answers.held() as f64);
    let help = "Most that they may hold; beyond it reads are answered as busy.";
    page.gauge("kontiki_answer_bytes_max", help, state.answers.max() as f64);
    let full = f64::from(u8::from(state.reader.is_disk_full()));
    let help = "1 while the disk is full, until the reserve is whole again; else 0.";
    page.gauge("kontiki_disk_full", help, full);
    let different = f64::from(u8::from(state.different.load(Ordering::Relaxed)));
    let help = "1 once replicas were seen to differ at an equal index, which must never be.";
    page.gauge("kontiki_replicas_differ", help, different);
    let damaged = f64::from(u8::from(state.damaged.load(Ordering::Relaxed)));
    let help = "1 while the store is damaged and being repaired; else 0.";
    page.gauge("kontiki_store_damaged", help, damaged);
    store(&mut page, &state.reader.stats());
    page.0
}

fn store(page: &mut Page, s: &StoreStats) {
    let counters = [
        ("written_bytes", "Bytes of keys and values given to the store.", s.written_bytes),
        ("flushed_bytes", "Bytes of tables written by flushes.", s.flushed_bytes),
        ("compacted_bytes", "Bytes of tables written by compactions.", s.compacted_bytes),
        ("compaction_read_bytes", "Bytes of tables read by compactions.", s.compaction_read_bytes),
        ("gets", "Point reads.", s.gets),
        ("table_probes", "Tables that point reads looked into.", s.table_probes),
        ("filter_skips", "Tables that point reads were spared by a filter.", s.filter_skips),
        ("cache_hits", "Blocks found in the cache.", s.cache_hits),
        ("cache_misses", "Blocks not found in the cache.", s.cache_misses),
        ("block_reads", "Blocks read from files for readers.", s.block_reads),
        ("tables_moved", "Tables that went a level down unread.", s.moves),
        ("reclaims", "Compactions for the space that deletes left.", s.reclaims),
        ("tombstones_dropped", "Tombstones that had done their work.", s.tombstones_dropped),
    ];
    for (name, help, value) in counters {
        page.counter(&format!("kontiki_store_{name}_total"), help, value);
    }
    let gauges = [
        ("cache_bytes", "Bytes in the block cache.", s.cache_bytes as f64),
        ("memtable_bytes", "Bytes of writes in memory.", s.memtable_bytes as f64),
        ("table_entries", "Entries in tables.", s.table_entries as f64),
        ("tombstones", "Tombstones in tables.", s.tombstones as f64),
        (
            "write_amplification",
            "Bytes written to tables for each byte given to the store.",
            s.write_amplification(),
        ),
        (
            "read_amplification",
            "Blocks read from files for each point read.",
            s.read_amplification(),
        ),
        (
            "space_amplification",
            "Bytes of all tables for each byte of the last level.",
            s.space_amplification(),
        ),
    ];
    for (name, help, value) in gauges {
        page.gauge(&format!("kontiki_store_{name}"), help, value);
    }
    let names = [("tables", "Tables of a level."), ("table_bytes", "Bytes of a level.")];
    for (which, (name, help)) in names.into_iter().enumerate() {
        page.head(&format!("kontiki_store_{name}"), help, "gauge");
        for (level, &(tables, bytes)) in s.levels.iter().enumerate() {
            let value = if which == 0 { tables as u64 } else { bytes };
            // Writing to a string does not fail.
            let _ = writeln!(page.0, "kontiki_store_{name}{{level=\"{level}\"}} {value}");
        }
    }
}

struct Page(String);

impl Page {
    fn head(&mut self, name: &str, help: &str, kind: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.head(name, help, "counter");
        let _ = writeln!(self.0, "{name} {value}");
    }

    fn gauge(&mut self, name: &str, help: &str, value: f64) {
        self.head(name, help, "gauge");
        let _ = writeln!(self.0, "{name} {value}");
    }
}

#[cfg(test)]
mod tests {
    use super::super::answers::ANSWER_BYTES_MAX;
    use super::*;
    use crate::api::tests::state;

    /// Lines without what explains them.
    fn values(page: &str) -> Vec<&str> {
        page.lines().filter(|line| !line.starts_with('#')).collect()
    }

    #[test]
    fn every_number_has_its_name_on_the_page() {
        // All numbers differ, so that none can stand for another one.
        let stats = StoreStats {
            written_bytes: 100,
            flushed_bytes: 130,
            compacted_bytes: 120,
            compaction_read_bytes: 3,
            gets: 8,
            table_probes: 5,
            filter_skips: 6,
            cache_hits: 7,
            cache_misses: 9,
            block_reads: 12,
            moves: 10,
            reclaims: 11,
            tombstones_dropped: 13,
            cache_bytes: 14,
            memtable_bytes: 15,
            table_entries: 16,
            tombstones: 17,
            levels: vec![(2, 30), (1, 60)],
            largest_run_bytes: 60,
            ..StoreStats::default()
        };
        let mut page = Page(String::new());
        store(&mut page, &stats);
        let expected = "written_bytes_total 100\nflushed_bytes_total 130\ncompacted_bytes_total 120\n\
            compaction_read_bytes_total 3\ngets_total 8\ntable_probes_total 5\nfilter_skips_total 6\n\
            cache_hits_total 7\ncache_misses_total 9\nblock_reads_total 12\ntables_moved_total 10\n\
            reclaims_total 11\ntombstones_dropped_total 13\ncache_bytes 14\nmemtable_bytes 15\n\
            table_entries 16\ntombstones 17\nwrite_amplification 2.5\nread_amplification 1.5\n\
            space_amplification 1.5\ntables{level=\"0\"} 2\ntables{level=\"1\"} 1\n\
            table_bytes{level=\"0\"} 30\ntable_bytes{level=\"1\"} 60";
        let expected: Vec<String> =
            expected.lines().map(|line| format!("kontiki_store_{line}")).collect();
        assert_eq!(values(&page.0), expected);

        let state = state();
        state.log_bytes.store(21, Ordering::Relaxed);
        state.connections.store(22, Ordering::Relaxed);
        state.connections_max.store(23, Ordering::Relaxed);
        state.different.store(true, Ordering::Relaxed);
        let page = text(&state);
        let answers = [("bytes", 0), ("bytes_max", ANSWER_BYTES_MAX)]
            .map(|(name, value)| format!("kontiki_answer_{name} {value}"));
        let expected = [
            "kontiki_applied_index 1",
            "kontiki_log_bytes 21",
            "kontiki_connections 22",
            "kontiki_connections_max 23",
            "kontiki_requests_under_way 0",
            "kontiki_requests_under_way_max 4096",
            "kontiki_requests_refused_total 0",
            &answers[0],
            &answers[1],
            "kontiki_disk_full 0",
            "kontiki_replicas_differ 1",
            "kontiki_store_damaged 0",
        ];
        assert_eq!(values(&page)[..expected.len()], expected);
        state.damaged.store(true, Ordering::Relaxed);
        assert!(text(&state).contains("\nkontiki_store_damaged 1\n"));
    }
}
