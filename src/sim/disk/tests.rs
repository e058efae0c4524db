//! What the simulated disk keeps and loses.

use super::*;

fn disk_with(seed: u64) -> (SimDisk, Arc<dyn DiskFile>) {
    let disk = SimDisk::new(Dice::new(seed));
    let file = disk.open(Path::new("d/f"), Open::CreateNew).unwrap();
    file.write_all_at(&[1; 2048], 0).unwrap();
    file.sync_all().unwrap();
    disk.sync_dir(Path::new("d")).unwrap();
    (disk, file)
}

/// What was synced survives every power loss; what was not comes back sector by sector as the
/// old or the new bytes, and over some seeds as both, in any order.
#[test]
fn a_power_loss_takes_unsynced_sectors_one_by_one() {
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..64 {
        let (disk, file) = disk_with(seed);
        file.write_all_at(&[2; 1024], 512).unwrap();
        disk.power_lost();
        let bytes = disk.bytes(Path::new("d/f")).unwrap();
        assert!(bytes[..512].iter().chain(&bytes[1536..]).all(|&b| b == 1));
        let sectors: Vec<u8> = bytes[512..1536].chunks(512).map(|s| s[0]).collect();
        assert!(bytes.chunks(512).all(|s| s.iter().all(|&b| b == s[0])), "sectors are whole");
        seen.insert(sectors);
    }
    assert_eq!(seen.len(), 4, "both, none, and each alone");
}

/// A name that was not synced is there or not; a killed process loses neither name nor bytes.
#[test]
fn names_are_durable_after_the_directory_is_synced() {
    let mut found = [0, 0];
    for seed in 0..32 {
        let (disk, _) = disk_with(seed);
        disk.open(Path::new("d/g"), Open::CreateNew).unwrap();
        disk.killed();
        assert!(disk.bytes(Path::new("d/g")).is_some());
        disk.power_lost();
        found[usize::from(disk.bytes(Path::new("d/g")).is_some())] += 1;
        assert!(disk.bytes(Path::new("d/f")).is_some());
    }
    assert!(found[0] > 0 && found[1] > 0);
}

/// Once the power has failed nothing works until it is back.
#[test]
fn the_power_fails_in_the_middle() {
    let (disk, file) = disk_with(1);
    disk.fail_power_in(1);
    file.write_all_at(&[3; 4], 0).unwrap();
    assert!(file.sync_all().is_err());
    assert!(disk.is_dark());
    assert!(file.read_exact_at(&mut [0], 0).is_err());
    disk.power_lost();
    assert!(file.read_exact_at(&mut [0], 0).is_ok());
}
