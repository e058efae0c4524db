//! Contents on their way from store to store: equal at the end, whatever was cut off, damaged,
//! crashed or under way meanwhile. Connections are left out; pieces are handed over by hand.

mod under_way;

use super::*;
use crate::env::Open;

use crate::wal::testdisk::Fault;
use std::collections::BTreeSet;
use std::path::PathBuf;

const INCOMING: &str = "/data/incoming";
/// Identity of the stores that give.
const GIVER: u64 = 0x0badcafe;
/// The entry that sealing adds.
const MARK: Extra<'static> = (0, b"mark", 77, b"installed");

/// A store with its disk, and what it holds.
struct Store {
    disk: TestDisk,
    engine: Engine,
    worker: Worker,
    model: Model,
    dice: Dice,
}

impl Store {
    fn on(disk: TestDisk, identity: u64, seed: u64) -> Store {
        let options = Options { identity, ..options() };
        let (engine, worker) = Engine::open(disk.shared(), Path::new(DIR), options).unwrap();
        Store { disk, engine, worker, model: Model::new(), dice: Dice(seed) }
    }

    /// An empty one that will take.
    fn taker(seed: u64) -> Store {
        Store::on(TestDisk::default(), options().identity, seed)
    }

    /// A full one that gives, flushed at `applied` + `batches`: level 0 hides keys below, by values and tombstones.
    fn giver(seed: u64, batches: u64) -> Store {
        let mut store = Store::on(TestDisk::default(), GIVER, seed);
        store.engine.write(1000, []).unwrap();
        store.fill(batches);
        store.settle();
        for value in [None, Some(b"again".to_vec()), None] {
            let (first, last) = (store.model.keys().next(), store.model.keys().next_back());
            let keys = [first.unwrap().clone(), last.unwrap().clone()];
            store.write(&keys.map(|key| (key, value.clone())));
            store.engine.flush();
            // No further: at rest the tombstones would go.
            while store.engine.flushed() < store.engine.applied() {
                store.worker.step().unwrap();
            }
            if store.engine.stats().levels[0].0 >= 2 {
                break;
            }
        }
        let stats = store.engine.stats();
        assert!(stats.levels[0].0 >= 2 && stats.tombstones > 0, "{stats:?}");
        assert!(stats.levels[1..].iter().any(|l| l.0 > 0), "{stats:?}");
        store
    }

    fn write(&mut self, batch: &[Put]) {
        let applied = self.engine.applied() + 1;
        write(&mut self.engine, &mut self.model, applied, batch);
    }

    fn fill(&mut self, batches: u64) {
        for _ in 0..batches {
            let batch = any_batch(&mut self.dice);
            self.write(&batch);
            self.worker.step().unwrap();
        }
    }

    fn settle(&mut self) {
        self.engine.flush();
        drain(&mut self.worker);
    }

    fn export(&self) -> Export {
        self.engine.reader().export()
    }

    fn import(&self, manifest: &[u8]) -> Result<Import, LsmError> {
        self.engine.import(self.disk.shared(), Path::new(INCOMING), manifest)
    }

    /// Fetches, seals and installs.
    fn take(&mut self, export: &Export) {
        let mut import = self.import(&export.manifest()).unwrap();
        fetch(&mut import, export);
        self.engine.install(seal(&mut import)).unwrap();
        import.discard().unwrap();
    }

    /// The store is what it is said to be, its directory has no file too many, and both are so
    /// after reopening too; it goes on with writes, flushes and compactions.
    fn check(&mut self, model: &Model, applied: u64) {
        assert_eq!((self.engine.applied(), self.engine.flushed()), (applied, applied));
        self.model = model.clone();
        drain(&mut self.worker);
        self.check_contents();
        let mut again = Store::on(self.disk.copy(), options().identity, 1);
        assert_eq!(again.engine.applied(), applied);
        again.model = model.clone();
        again.check_contents();
        let compacted = self.engine.stats().compacted_bytes;
        self.fill(150);
        self.settle();
        assert!(self.engine.stats().compacted_bytes > compacted);
        self.check_contents();
        let mut again = Store::on(self.disk.crashed(self.disk.ops(), 0), options().identity, 1);
        again.model = self.model.clone();
        again.check_contents();
    }

    fn check_contents(&self) {
        let view = self.engine.reader().view();
        for reverse in [false, true] {
            assert_eq!(contents(&view, reverse).unwrap(), self.model);
        }
        for (key, cell) in &self.model {
            assert_eq!(get(&view, key).unwrap().as_ref(), Some(cell));
        }
        assert_eq!(files(&self.disk, DIR).len(), named(&self.engine), "files that nobody names");
    }
}

/// Tables in a directory.
fn files(disk: &TestDisk, dir: &str) -> Vec<PathBuf> {
    let is_table = |name: &str| name.contains("table-") || name.contains("fetched-");
    let table = |p: &PathBuf| p.starts_with(dir) && is_table(&p.to_string_lossy());
    disk.paths().into_iter().filter(table).collect()
}

/// How many tables the store consists of.
fn named(engine: &Engine) -> usize {
    engine.stats().levels.iter().map(|l| l.0).sum()
}

/// Tables that a travelling manifest names.
fn tables(manifest: &[u8]) -> BTreeSet<u64> {
    let identity = manifest::identity_of(manifest).unwrap();
    let (_, state) = manifest::decode(manifest, identity, 2).unwrap();
    state.levels.iter().flatten().map(|t| t.number).collect()
}

/// Hands over what is missing; the pieces.
fn fetch(import: &mut Import, export: &Export) -> Vec<Piece> {
    let mut asked = Vec::new();
    while let Some(piece) = import.missing() {
        assert!(export.holds(piece));
        import.put(piece, &export.read(piece).unwrap()).unwrap();
        asked.push(piece);
    }
    asked
}

fn numbers(pieces: &[Piece]) -> BTreeSet<u64> {
    pieces.iter().map(|piece| piece.table).collect()
}

/// Steps until there is something else to say than that there is more to do.
fn seal_or_damaged(import: &mut Import) -> Option<Staged> {
    loop {
        match import.seal(&[MARK]).unwrap() {
            Sealed::Working => {}
            Sealed::Damaged => return None,
            Sealed::Done(staged) => return Some(staged),
        }
    }
}

fn seal(import: &mut Import) -> Staged {
    seal_or_damaged(import).expect("nothing is damaged")
}

/// A giver's contents as they arrive.
fn marked(model: &Model) -> Model {
    let mut model = model.clone();
    let (space, key, revision, value) = MARK;
    model.insert((space, key.to_vec()), (revision, value.to_vec()));
    model
}

#[test]
fn what_arrives_is_what_was_exported_and_nothing_of_the_old_state_stays() {
    // The giver goes on while it gives; the taker has tables, a frozen memtable and one that
    // fills, and a reader in the middle of a scan of all that.
    for seed in 0..6 {
        let mut giver = Store::giver(seed, 250);
        let (export, given) = (giver.export(), giver.model.clone());
        let applied = giver.engine.flushed();
        giver.fill(200);
        giver.settle();
        assert_ne!(giver.model, given);
        assert_eq!(export.applied(), applied);

        let mut taker = Store::taker(seed + 50);
        taker.fill(seed * 60);
        taker.write(&[((1, b"frozen".to_vec()), Some(vec![1]))]);
        taker.engine.flush();
        taker.write(&[((1, b"unflushed".to_vec()), Some(vec![2]))]);
        let (view, then) = (taker.engine.reader().view(), taker.model.clone());
        taker.take(&export);
        assert_eq!(taker.engine.reader().view().applied(), applied);
        // Nothing was written but the mark.
        assert_eq!(named(&taker.engine), tables(&export.manifest()).len() + 1);
        drain(&mut taker.worker);
        assert_eq!(contents(&view, true).unwrap(), then, "a view moved");
        drop(view);
        taker.check(&marked(&given), applied);
        assert_eq!(files(&taker.disk, INCOMING).len(), 0);

        // When nobody needs the exported tables any more, the giver has no file too many either.
        drop(export);
        drain(&mut giver.worker);
        giver.check_contents();
        // And a second snapshot takes the place of the first.
        giver.engine.write(9000, []).unwrap();
        giver.settle();
        taker.take(&giver.export());
        taker.check(&marked(&giver.model), 9000);
    }
}

#[test]
fn a_store_without_tables_arrives_as_one_without_contents() {
    // The giver holds nothing: what the taker held is gone all the same.
    let mut giver = Store::on(TestDisk::default(), GIVER, 1);
    giver.engine.write(500, []).unwrap();
    giver.settle();
    let mut taker = Store::taker(2);
    taker.fill(100);
    taker.take(&giver.export());
    taker.check(&marked(&Model::new()), 500);
}

#[test]
fn a_fetch_that_was_cut_off_goes_on_where_it_was() {
    // It is cut off after each piece in turn, and resumed with the same manifest, then with a newer
    // one of the same store, then with one of another store.
    let mut giver = Store::giver(3, 120);
    giver.write(&[((1, b"big".to_vec()), Some(vec![7; 600 << 10]))]);
    giver.settle();
    let (old, given) = (giver.export(), marked(&giver.model));
    // The newer state shares some tables with the older one.
    for _ in 0..3 {
        giver.write(&[((1, b"a-long-shared-front/a".to_vec()), Some(vec![8; 3000]))]);
        giver.settle();
    }
    let new = giver.export();
    let (old_tables, new_tables) = (tables(&old.manifest()), tables(&new.manifest()));
    let shared: BTreeSet<u64> = old_tables.intersection(&new_tables).copied().collect();
    assert!(shared.len() >= 2 && shared.len() < old_tables.len().min(new_tables.len() + 1));
    let all = {
        let taker = Store::taker(4);
        let mut import = taker.import(&old.manifest()).unwrap();
        fetch(&mut import, &old)
    };
    assert!(all.len() >= old_tables.len() + 2, "a table of several pieces is needed");
    let mut stranger = Store::on(TestDisk::default(), GIVER + 1, 6);
    stranger.fill(100);
    stranger.settle();
    let strange = stranger.export();
    for stop in 0..=all.len() {
        let mut taker = Store::taker(4);
        let mut import = taker.import(&old.manifest()).unwrap();
        for piece in &all[..stop] {
            assert_eq!(import.missing(), Some(*piece));
            import.put(*piece, &old.read(*piece).unwrap()).unwrap();
        }
        let left: u64 = all[stop..].iter().map(|p| p.len as u64).sum();
        assert_eq!(import.bytes().1, left);
        assert_eq!(import.bytes().0, all.iter().map(|p| p.len as u64).sum::<u64>());
        drop(import);
        let rest = numbers(&all[stop..]);
        let whole: BTreeSet<u64> = &old_tables - &rest;
        for stray in ["fetched-000000000badcafe-99999999", "table-7", "notes"] {
            taker.disk.shared().open(&Path::new(INCOMING).join(stray), Open::CreateNew).unwrap();
        }
        // Each continuation on a disk of its own.
        let cut_off = taker.disk.copy();
        let again = |manifest: &[u8], export: &Export| {
            let taker = Store::on(cut_off.copy(), options().identity, 4);
            let mut import = taker.import(manifest).unwrap();
            let left: Vec<_> = files(&taker.disk, INCOMING);
            assert!(
                left.iter().all(|p| !p.ends_with("fetched-000000000badcafe-99999999")),
                "{left:?}"
            );
            let asked = fetch(&mut import, export);
            let there = taker.disk.paths().iter().filter(|p| p.starts_with(INCOMING)).count();
            assert_eq!(there, tables(manifest).len());
            (asked, import, taker)
        };
        let (asked, ..) = again(&old.manifest(), &old);
        let expected: Vec<_> = all.iter().filter(|p| rest.contains(&p.table)).copied().collect();
        assert_eq!(asked, expected, "stopped after {stop}");
        let (asked, mut import, mut other_taker) = again(&new.manifest(), &new);
        assert_eq!(numbers(&asked), &new_tables - &whole, "stopped after {stop}");
        other_taker.engine.install(seal(&mut import)).unwrap();
        other_taker.check(&marked(&giver.model), new.applied());
        // Tables of another store are of no use, whatever their numbers.
        let (asked, ..) = again(&strange.manifest(), &strange);
        assert_eq!(numbers(&asked), tables(&strange.manifest()));
        // The one that was cut off can still be finished.
        let mut import = taker.import(&old.manifest()).unwrap();
        fetch(&mut import, &old);
        taker.engine.install(seal(&mut import)).unwrap();
        taker.check(&given, old.applied());
    }
}

#[test]
fn a_fetched_table_that_is_damaged_is_fetched_again_and_no_other() {
    // Bytes change, the end is lost, the file is lost: sealing says so, and asks for that table.
    let giver = Store::giver(7, 120);
    let export = giver.export();
    let mut taker = Store::taker(8);
    taker.fill(30);
    let before = files(&taker.disk, DIR).len();
    let mut import = taker.import(&export.manifest()).unwrap();
    fetch(&mut import, &export);
    let incoming = files(&taker.disk, INCOMING);
    assert!(incoming.len() >= 3);
    let mut damages = 0;
    for path in &incoming {
        let len = taker.disk.bytes(path).len();
        let flips = (0..len).step_by(89).chain([len - 1]).map(Some);
        for damage in flips.chain([None, None]) {
            match damage {
                Some(at) => taker.disk.edit(path, |bytes| bytes[at] ^= 1 << (at % 8)),
                None if damages % 2 == 0 => taker.disk.edit(path, |b| b.truncate(len / 2)),
                None => taker.disk.shared().remove(path).unwrap(),
            }
            damages += 1;
            // A new import finds out at once that the end of a file is wrong, else when all is read again.
            import = taker.import(&export.manifest()).unwrap();
            if import.missing().is_none() {
                assert!(seal_or_damaged(&mut import).is_none(), "{damage:?} passed");
            }
            let asked = fetch(&mut import, &export);
            let name = |n: &u64| format!("fetched-{GIVER:016x}-{n:08}");
            let names: Vec<_> = numbers(&asked).iter().map(name).collect();
            assert_eq!(names, [path.file_name().unwrap().to_str().unwrap()]);
            taker.worker.step().unwrap();
        }
    }
    drain(&mut taker.worker);
    assert!(files(&taker.disk, DIR).len() <= before + 1, "half-sealed tables are left");
    taker.engine.install(seal(&mut import)).unwrap();
    taker.check(&marked(&giver.model), export.applied());
}

#[test]
fn a_giver_whose_own_table_is_damaged_does_not_pass_that_on() {
    // Before the first piece of a table goes out all of it is looked at, wherever the damage lies; the
    // giver knows of it from then on.
    let giver = Store::giver(9, 120);
    let export = giver.export();
    let taker = Store::taker(10);
    let path = files(&giver.disk, DIR).pop().unwrap();
    giver.disk.edit(&path, |bytes| {
        let at = bytes.len() / 2;
        bytes[at] ^= 4;
    });
    let mut import = taker.import(&export.manifest()).unwrap();
    let error = loop {
        let piece = import.missing().expect("one table does not come");
        match export.read(piece) {
            Ok(bytes) => import.put(piece, &bytes).unwrap(),
            Err(e) => break e,
        }
    };
    assert_eq!(error.class(), Class::Repair, "{error}");
    assert!(giver.engine.reader().damage().is_some());
    assert!(files(&taker.disk, INCOMING).iter().all(|p| p.file_name() != path.file_name()));
}

#[test]
fn what_was_not_asked_for_is_refused_and_changes_nothing() {
    // Manifests that are none, pieces that lie elsewhere, ranges that are not there.
    let giver = Store::giver(11, 60);
    let export = giver.export();
    let mut taker = Store::taker(12);
    let manifest = export.manifest();
    let mut import = taker.import(&manifest).unwrap();
    let first = import.missing().unwrap();
    import.put(first, &export.read(first).unwrap()).unwrap();
    let kept = files(&taker.disk, INCOMING);
    let mut bad: Vec<Vec<u8>> = (0..manifest.len()).map(|at| manifest[..at].to_vec()).collect();
    for at in 0..manifest.len() {
        let mut flipped = manifest.clone();
        flipped[at] ^= 1 << (at % 8);
        bad.push(flipped);
    }
    // Whole, but of no store: a table twice, and sizes beyond all measure.
    let (_, state) = manifest::decode(&manifest, GIVER, 2).unwrap();
    let mut twice = state.clone();
    twice.levels[3] = twice.levels[0].clone();
    let mut huge = state;
    huge.levels[0].iter_mut().for_each(|table| table.bytes = u64::MAX - 1);
    bad.extend([twice, huge].map(|state| manifest::encode(&state, GIVER, 2, 0)));
    for (i, bad) in bad.iter().enumerate() {
        let error = taker.import(bad).expect_err("a bad manifest passed");
        assert_eq!(error.class(), Class::Repair, "{i}: {error}");
    }
    assert_eq!(files(&taker.disk, INCOMING), kept);

    let piece = import.missing().unwrap();
    let bytes = export.read(piece).unwrap();
    let refused = [
        (first, bytes.clone()),
        (Piece { table: piece.table + 1000, ..piece }, bytes.clone()),
        (Piece { offset: piece.offset + 1, ..piece }, bytes.clone()),
        (Piece { len: piece.len - 1, ..piece }, bytes[1..].to_vec()),
        (piece, bytes[1..].to_vec()),
        (piece, [&bytes[..], &[0]].concat()),
    ];
    for (piece, bytes) in refused {
        assert_eq!(import.put(piece, &bytes).unwrap_err().class(), Class::Reject, "{piece:?}");
    }
    assert_eq!(import.missing(), Some(piece));
    assert_eq!(import.seal(&[MARK]).unwrap_err().class(), Class::Reject, "not all is here");
    assert_eq!(import.missing(), Some(piece));
    let absent = [
        Piece { table: 9999, ..piece },
        Piece { offset: piece.offset + 1, ..piece },
        Piece { offset: u64::MAX, ..piece },
        Piece { len: PIECE_BYTES_MAX + 1, ..piece },
    ];
    for piece in absent {
        assert!(!export.holds(piece));
        assert_eq!(export.read(piece).unwrap_err().class(), Class::Reject, "{piece:?}");
    }
    fetch(&mut import, &export);
    let staged = seal(&mut import);
    // Nor does another store take it.
    let mut other = Store::taker(13);
    other.fill(20);
    assert_eq!(other.engine.install(staged).unwrap_err().class(), Class::Reject);
    other.settle();
    other.check_contents();
    drain(&mut taker.worker);
    assert_eq!(files(&taker.disk, DIR).len(), 0, "what was refused is removed where it lies");
    let staged = seal(&mut import);
    taker.engine.install(staged).unwrap();
    taker.check(&marked(&giver.model), export.applied());
}

#[test]
fn after_a_crash_at_every_operation_the_store_is_the_old_one_or_the_new_one() {
    // The taker works on while it fetches and seals, then installs. Whatever a crash leaves, its
    // state is one that it had, not before what it called flushed, and all of it; fetching goes on
    // from there, and the end is the same.
    let giver = Store::giver(15, 40);
    let (export, given) = (giver.export(), marked(&giver.model));
    let manifest = export.manifest();
    let mut taker = Store::taker(16);
    taker.fill(12);
    let mut states = BTreeMap::from([(0, Model::new())]);
    states.insert(taker.engine.applied(), taker.model.clone());
    taker.settle();
    let start = taker.disk.ops();
    let mut flushed = vec![(start, taker.engine.flushed())];
    let mut step = |taker: &mut Store, flushed: &mut Vec<(usize, u64)>| {
        let batch = any_batch(&mut taker.dice);
        taker.write(&batch);
        states.insert(taker.engine.applied(), taker.model.clone());
        taker.worker.step().unwrap();
        flushed.push((taker.disk.ops(), taker.engine.flushed()));
    };
    let mut import = taker.import(&manifest).unwrap();
    while let Some(piece) = import.missing() {
        import.put(piece, &export.read(piece).unwrap()).unwrap();
        step(&mut taker, &mut flushed);
    }
    let staged = loop {
        match import.seal(&[MARK]).unwrap() {
            Sealed::Done(staged) => break staged,
            _ => step(&mut taker, &mut flushed),
        }
    };
    let installing = taker.disk.ops();
    taker.engine.install(staged).unwrap();
    flushed.push((taker.disk.ops(), taker.engine.flushed()));
    import.discard().unwrap();
    drain(&mut taker.worker);
    states.insert(export.applied(), given.clone());
    let (mut old, mut new, mut kinds) = (0, 0, BTreeSet::new());
    for n in start..=taker.disk.ops() {
        let (what, name) = taker.disk.operation(n);
        kinds.insert((what, name.split_once('-').map_or("", |(kind, _)| kind).to_owned()));
        let least = flushed.iter().rev().find(|(ops, _)| *ops <= n).unwrap().1;
        let mut images = super::crash::images(&taker.disk, n);
        images.push(("killed".into(), taker.disk.killed(n)));
        for (image, disk) in images {
            let what = format!("operation {n}, {image}");
            let mut again = Store::on(disk, options().identity, 17);
            let applied = again.engine.applied();
            assert!(applied >= least, "{what}: {applied} is before {least}");
            assert!(n > installing || applied < export.applied(), "{what}: too early");
            let found = contents(&again.engine.reader().view(), false).unwrap();
            assert_eq!(found, states[&applied], "{what}");
            if applied == export.applied() {
                new += 1;
            } else {
                old += 1;
            }
            // On with it; sectors may be missing in what looked whole.
            let mut import = again.import(&manifest).unwrap();
            let staged = loop {
                fetch(&mut import, &export);
                if let Some(staged) = seal_or_damaged(&mut import) {
                    break staged;
                }
            };
            again.engine.install(staged).unwrap();
            import.discard().unwrap();
            drain(&mut again.worker);
            again.model = given.clone();
            again.check_contents();
            let disk = again.disk.crashed(again.disk.ops(), 0);
            let mut again = Store::on(disk, options().identity, 17);
            again.model = given.clone();
            again.check_contents();
        }
    }
    assert!(old > 200 && new > 10, "{old} {new}");
    for what in ["create", "remove", "sync", "write"] {
        assert!(kinds.contains(&(what, "table".into())), "{kinds:?}");
    }
    assert!(kinds.contains(&("sync directory", String::new())), "{kinds:?}");
    assert!(kinds.contains(&("write", "manifest".into())), "{kinds:?}");
}

#[test]
fn what_is_given_up_leaves_no_files_behind() {
    // An import is dropped before and within each step of sealing, and a staged snapshot without
    // being installed; a full disk comes in between.
    let giver = Store::giver(18, 100);
    let export = giver.export();
    let mut taker = Store::taker(19);
    taker.fill(60);
    taker.settle();
    let mut steps = 0;
    loop {
        let mut import = taker.import(&export.manifest()).unwrap();
        let asked = fetch(&mut import, &export);
        assert_eq!(asked.is_empty(), steps > 0, "what is whole is not fetched again");
        let mut staged = None;
        for _ in 0..steps {
            if let Sealed::Done(done) = import.seal(&[MARK]).unwrap() {
                staged = Some(done);
            }
        }
        let done = staged.is_some();
        drop((import, staged));
        taker.worker.step().unwrap();
        taker.check_contents();
        steps += 1;
        if done {
            break;
        }
    }
    assert!(steps > 5, "{steps}");
    for fault in [Fault::Full, Fault::Sync, Fault::Write, Fault::Read] {
        let mut import = taker.import(&export.manifest()).unwrap();
        taker.disk.fail(Some(fault));
        let error = std::iter::repeat_with(|| import.seal(&[MARK])).find_map(Result::err).unwrap();
        assert_eq!(error.class(), Class::Stop, "{fault:?}: {error}");
        taker.disk.fail(None);
        taker.worker.step().unwrap();
        taker.check_contents();
    }
    // Not even when a table turns out to be damaged as it is installed: nothing names it.
    let mut import = taker.import(&export.manifest()).unwrap();
    let staged = seal(&mut import);
    let path = files(&taker.disk, INCOMING).pop().unwrap();
    taker.disk.spoil(&path, taker.disk.bytes(&path).len() - 1);
    assert_eq!(taker.engine.install(staged).unwrap_err().class(), Class::Repair);
    taker.worker.step().unwrap();
    taker.check_contents();
    // Once a manifest may name it, nothing is removed, and the store is to be opened again.
    let mut import = taker.import(&export.manifest()).unwrap();
    fetch(&mut import, &export);
    let staged = seal(&mut import);
    taker.disk.fail(Some(Fault::Sync));
    assert_eq!(taker.engine.install(staged).unwrap_err().class(), Class::Stop);
    taker.disk.fail(None);
    assert!(matches!(taker.engine.write(9000, []), Err(LsmError::Failed)));
    assert!(matches!(taker.worker.step(), Err(LsmError::Failed)));
    for seed in 0..4 {
        let disk = taker.disk.crashed(taker.disk.ops(), seed);
        let mut again = Store::on(disk, options().identity, 1);
        let new = again.engine.applied() == export.applied();
        again.model = if new { marked(&giver.model) } else { taker.model.clone() };
        again.check_contents();
    }
    import.discard().unwrap();
    assert_eq!(taker.disk.paths().iter().filter(|p| p.starts_with(INCOMING)).count(), 0);
}
