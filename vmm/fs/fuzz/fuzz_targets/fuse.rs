//! A guest that sends anything as FUSE requests.
//!
//! `tests/fuzz 60 fuse`, as root. The server has to survive, and to answer an
//! honest request afterwards. It serves a small tmpfs in a mount namespace of the fuzzer's own.
#![no_main]

use std::fs::File;
use std::sync::{Arc, OnceLock};

use arbitrary::Arbitrary;
use cloister_fs::Memory;
use cloister_fs::service::answer;
use cloister_fs::shared::Shared;
use libfuzzer_sys::fuzz_target;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use virtiofsd::server::Server;
use vm_memory::{Bytes, GuestAddress};

const SHARED: &str = "/tmp";
const MEMORY: usize = 0x40_0000;
const TABLE: u64 = 0;
const AVAIL: u64 = 0x1000;
const USED: u64 = 0x2000;
const BUFFERS: u64 = 0x1_0000;
const GETATTR: u32 = 3;
const INIT: u32 = 26;

#[derive(Debug, Arbitrary)]
enum Body {
    /// Arguments of any bytes.
    Bytes(Vec<u8>),
    /// Arguments, then names.
    Names {
        arguments: Vec<u8>,
        words: u8,
        names: Vec<Name>,
    },
}

#[derive(Debug, Arbitrary)]
enum Name {
    Known(u8),
    Any(Vec<u8>),
}

#[derive(Debug, Arbitrary)]
struct Request {
    opcode: u8,
    /// Instead of one that fits.
    length: Option<u32>,
    node: u8,
    any_node: Option<u64>,
    user: u16,
    group: u16,
    extension: u8,
    body: Body,
    /// How the request is cut into buffers, and the room for the answer.
    cuts: [u16; 2],
    room: u32,
}

impl Request {
    fn encode(&self) -> Vec<u8> {
        let mut body = Vec::new();
        match &self.body {
            Body::Bytes(bytes) => body.extend_from_slice(bytes),
            Body::Names {
                arguments,
                words,
                names,
            } => {
                body.extend_from_slice(arguments);
                body.resize(usize::from(*words % 17) * 4, 0);
                for name in names {
                    match name {
                        Name::Known(index) => body.push(b'a' + index % 8),
                        Name::Any(bytes) => body.extend_from_slice(bytes),
                    }
                    body.push(0);
                }
            }
        }
        body.truncate(0x8000);
        let length = u32::try_from(40 + body.len()).unwrap();
        let node = self.any_node.unwrap_or(u64::from(self.node % 16));
        let mut request = Vec::new();
        request.extend(self.length.unwrap_or(length).to_le_bytes());
        request.extend(u32::from(self.opcode).to_le_bytes());
        request.extend(1u64.to_le_bytes());
        request.extend(node.to_le_bytes());
        request.extend(u32::from(self.user).to_le_bytes());
        request.extend(u32::from(self.group).to_le_bytes());
        request.extend(1u32.to_le_bytes());
        request.extend([self.extension, 0, 0, 0]);
        request.extend(body);
        request
    }
}

fn server() -> &'static Server<Shared> {
    static SERVER: OnceLock<Server<Shared>> = OnceLock::new();
    SERVER.get_or_init(|| {
        // SAFETY: nothing else in this process depends on the mount namespace.
        unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.unwrap();
        mount_change(
            "/",
            MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
        )
        .unwrap();
        mount(
            "tmpfs",
            SHARED,
            "tmpfs",
            MountFlags::empty(),
            Some(c"size=32m,nr_inodes=4096"),
        )
        .unwrap();
        let descriptors = File::open("/proc/self/fd").unwrap();
        Server::new(Shared::new(SHARED, descriptors, 4096).unwrap())
    })
}

fn ask(memory: &Arc<Memory>, request: &[u8], cuts: [u16; 2], room: u32) -> Option<Vec<u8>> {
    let mut pieces = Vec::new();
    let mut rest = request;
    for cut in cuts {
        let (piece, more) = rest.split_at(usize::from(cut).min(rest.len()));
        pieces.push(piece);
        rest = more;
    }
    pieces.push(rest);
    let room = room % 0x10_0000;
    let mut address = BUFFERS;
    let mut index = 0u16;
    let mut descriptor = |address: u64, length: u32, flags: u16| {
        let at = TABLE + u64::from(index) * 16;
        index += 1;
        memory.write_obj(address, GuestAddress(at)).unwrap();
        memory.write_obj(length, GuestAddress(at + 8)).unwrap();
        memory.write_obj(flags, GuestAddress(at + 12)).unwrap();
        memory.write_obj(index, GuestAddress(at + 14)).unwrap();
    };
    let last = pieces.len() - 1;
    for (at, piece) in pieces.iter().enumerate() {
        memory.write_slice(piece, GuestAddress(address)).unwrap();
        let next = u16::from(at < last || room > 0);
        descriptor(address, u32::try_from(piece.len()).unwrap(), next);
        address += piece.len() as u64;
    }
    let answered = 0x20_0000u64;
    if room > 0 {
        descriptor(answered, room, 2);
    }
    let mut queue = Queue::new(16).unwrap();
    queue
        .try_set_desc_table_address(GuestAddress(TABLE))
        .unwrap();
    queue
        .try_set_avail_ring_address(GuestAddress(AVAIL))
        .unwrap();
    queue.try_set_used_ring_address(GuestAddress(USED)).unwrap();
    queue.set_ready(true);
    memory.write_obj(1u16, GuestAddress(AVAIL + 2)).unwrap();
    memory.write_obj(0u16, GuestAddress(AVAIL + 4)).unwrap();
    let chain = queue.iter(memory.clone()).unwrap().next().unwrap();
    let length = answer(server(), memory, &chain).ok()?;
    assert!(length <= room, "{length} bytes for {room}");
    let mut bytes = vec![0; usize::try_from(length).unwrap()];
    memory
        .read_slice(&mut bytes, GuestAddress(answered))
        .unwrap();
    Some(bytes)
}

fn honest(memory: &Arc<Memory>, opcode: u8, body: Vec<u8>) {
    let request = Request {
        opcode,
        length: None,
        node: 1,
        any_node: None,
        user: 0,
        group: 0,
        extension: 0,
        body: Body::Bytes(body),
        cuts: [40, 0],
        room: 4096,
    };
    let answer = ask(memory, &request.encode(), request.cuts, request.room).unwrap();
    assert_eq!(answer[4..8], [0; 4], "opcode {opcode}");
}

fuzz_target!(|requests: Vec<Request>| {
    let memory = Arc::new(Memory::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap());
    let mut init = [7u32, 41, 1 << 17, 0x7bff_fffb, 0b1_1110]
        .map(u32::to_le_bytes)
        .concat();
    init.resize(64, 0);
    honest(&memory, u8::try_from(INIT).unwrap(), init.clone());
    for request in requests.iter().take(64) {
        ask(&memory, &request.encode(), request.cuts, request.room);
    }
    honest(&memory, u8::try_from(INIT).unwrap(), init);
    honest(&memory, u8::try_from(GETATTR).unwrap(), vec![0; 16]);
    for entry in std::fs::read_dir(SHARED).unwrap() {
        let path = entry.unwrap().path();
        let _ = std::fs::remove_dir_all(&path).or_else(|_| std::fs::remove_file(&path));
    }
});
