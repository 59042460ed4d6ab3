//! FUSE requests, as the guest's kernel would send them.

use virtiofsd::fuse::{
    Attr, AttrOut, CreateIn, EntryOut, FallocateIn, ForgetIn, GetattrIn, InitInCompat, InitOut,
    LinkIn, LseekIn, LseekOut, MkdirIn, MknodIn, OpenIn, OpenOut, ReadIn, ReleaseIn, Rename2In,
    SetattrIn, StatfsOut, WriteIn, WriteOut,
};
use vm_memory::ByteValued;

use super::guest::{Answer, Guest};

pub const ROOT: u64 = 1;

pub mod opcode {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const READLINK: u32 = 5;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RMDIR: u32 = 11;
    pub const LINK: u32 = 13;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const SETXATTR: u32 = 21;
    pub const GETXATTR: u32 = 22;
    pub const LISTXATTR: u32 = 23;
    pub const REMOVEXATTR: u32 = 24;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const CREATE: u32 = 35;
    pub const BATCH_FORGET: u32 = 42;
    pub const FALLOCATE: u32 = 43;
    pub const READDIRPLUS: u32 = 44;
    pub const RENAME2: u32 = 45;
    pub const LSEEK: u32 = 46;
    pub const TMPFILE: u32 = 51;
}

/// What Linux 6.12 sends as flags, less what changes nothing here.
const INIT_FLAGS: u32 = 0x7bff_fffb;
/// flags2: SECURITY_CTX left out, HAS_INODE_DAX, CREATE_SUPP_GROUP, DIRECT_IO_ALLOW_MMAP.
const INIT_FLAGS2: u32 = 0b1_1110;

pub const FOPEN_KEEP_CACHE: u32 = 2;
pub const ATTR_SUBMOUNT: u32 = 1;

fn object<T: ByteValued + Default>(bytes: &[u8]) -> T {
    let mut object = T::default();
    object
        .as_mut_slice()
        .copy_from_slice(&bytes[..size_of::<T>()]);
    object
}

fn join(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

fn name(name: &str) -> Vec<u8> {
    join(&[name.as_bytes(), b"\0"])
}

fn room<T>() -> u32 {
    u32::try_from(size_of::<T>()).unwrap()
}

impl Guest {
    pub fn init(&mut self) -> InitOut {
        let compat = InitInCompat {
            major: 7,
            minor: 41,
            max_readahead: 1 << 17,
            flags: INIT_FLAGS,
        };
        let mut arguments = compat.as_slice().to_vec();
        arguments.extend(INIT_FLAGS2.to_le_bytes());
        arguments.extend([0; 44]);
        object(
            &self
                .call(opcode::INIT, 0, &arguments, room::<InitOut>())
                .unwrap(),
        )
    }

    fn entry(&mut self, code: u32, nodeid: u64, arguments: &[u8]) -> Result<EntryOut, i32> {
        self.call(code, nodeid, arguments, room::<EntryOut>())
            .map(|body| object(&body))
    }

    fn plain(&mut self, code: u32, nodeid: u64, arguments: &[u8]) -> Result<(), i32> {
        self.call(code, nodeid, arguments, 0)
            .map(|body| assert!(body.is_empty()))
    }

    pub fn lookup(&mut self, parent: u64, child: &str) -> Result<EntryOut, i32> {
        self.entry(opcode::LOOKUP, parent, &name(child))
    }

    /// Looks up `path` from the root, component by component.
    pub fn walk(&mut self, path: &str) -> u64 {
        path.split('/').fold(ROOT, |parent, child| {
            self.lookup(parent, child)
                .unwrap_or_else(|errno| panic!("{path}: {child}: {errno}"))
                .nodeid
        })
    }

    pub fn getattr(&mut self, node: u64) -> Result<Attr, i32> {
        let arguments = GetattrIn::default();
        let out = self.call(
            opcode::GETATTR,
            node,
            arguments.as_slice(),
            room::<AttrOut>(),
        )?;
        Ok(object::<AttrOut>(&out).attr)
    }

    pub fn setattr(&mut self, node: u64, arguments: SetattrIn) -> Result<Attr, i32> {
        let out = self.call(
            opcode::SETATTR,
            node,
            arguments.as_slice(),
            room::<AttrOut>(),
        )?;
        Ok(object::<AttrOut>(&out).attr)
    }

    pub fn create(&mut self, parent: u64, child: &str, mode: u32) -> Result<(u64, u64), i32> {
        self.create_with(parent, child, mode, 0)
    }

    pub fn create_with(
        &mut self,
        parent: u64,
        child: &str,
        mode: u32,
        umask: u32,
    ) -> Result<(u64, u64), i32> {
        let arguments = CreateIn {
            flags: libc::O_RDWR.cast_unsigned(),
            mode: libc::S_IFREG | mode,
            umask,
            open_flags: 0,
        };
        let arguments = join(&[arguments.as_slice(), &name(child)]);
        let size = room::<EntryOut>() + room::<OpenOut>();
        let out = self.call(opcode::CREATE, parent, &arguments, size)?;
        let entry: EntryOut = object(&out);
        let open: OpenOut = object(&out[size_of::<EntryOut>()..]);
        Ok((entry.nodeid, open.fh))
    }

    pub fn open(&mut self, node: u64, flags: i32) -> Result<OpenOut, i32> {
        let arguments = OpenIn {
            flags: flags.cast_unsigned(),
            open_flags: 0,
        };
        self.call(opcode::OPEN, node, arguments.as_slice(), room::<OpenOut>())
            .map(|body| object(&body))
    }

    pub fn release(&mut self, node: u64, fh: u64) {
        let arguments = ReleaseIn {
            fh,
            ..ReleaseIn::default()
        };
        self.plain(opcode::RELEASE, node, arguments.as_slice())
            .unwrap();
    }

    pub fn write_request(fh: u64, offset: u64, data: &[u8], flags: u32) -> Vec<u8> {
        let arguments = WriteIn {
            fh,
            offset,
            size: u32::try_from(data.len()).unwrap(),
            write_flags: flags,
            ..WriteIn::default()
        };
        join(&[arguments.as_slice(), data])
    }

    pub fn write(&mut self, node: u64, fh: u64, offset: u64, data: &[u8]) -> Result<u32, i32> {
        self.write_with(node, fh, offset, data, 0)
    }

    pub fn write_with(
        &mut self,
        node: u64,
        fh: u64,
        offset: u64,
        data: &[u8],
        flags: u32,
    ) -> Result<u32, i32> {
        let arguments = Self::write_request(fh, offset, data, flags);
        self.call(opcode::WRITE, node, &arguments, room::<WriteOut>())
            .map(|body| object::<WriteOut>(&body).size)
    }

    pub fn read(&mut self, node: u64, fh: u64, offset: u64, size: u32) -> Answer {
        let arguments = ReadIn {
            fh,
            offset,
            size,
            ..ReadIn::default()
        };
        self.call(opcode::READ, node, arguments.as_slice(), size)
    }

    /// The whole file at `path`.
    pub fn contents(&mut self, path: &str) -> Vec<u8> {
        let node = self.walk(path);
        let fh = self.open(node, libc::O_RDONLY).unwrap().fh;
        let data = self.read(node, fh, 0, 1 << 16).unwrap();
        self.release(node, fh);
        data
    }

    pub fn mkdir(&mut self, parent: u64, child: &str, mode: u32) -> Result<u64, i32> {
        let arguments = MkdirIn { mode, umask: 0 };
        let arguments = join(&[arguments.as_slice(), &name(child)]);
        self.entry(opcode::MKDIR, parent, &arguments)
            .map(|entry| entry.nodeid)
    }

    pub fn mknod(&mut self, parent: u64, child: &str, mode: u32, rdev: u32) -> Result<u64, i32> {
        let arguments = MknodIn {
            mode,
            rdev,
            umask: 0,
            padding: 0,
        };
        let arguments = join(&[arguments.as_slice(), &name(child)]);
        self.entry(opcode::MKNOD, parent, &arguments)
            .map(|entry| entry.nodeid)
    }

    pub fn symlink(&mut self, parent: u64, child: &str, target: &str) -> Result<u64, i32> {
        let arguments = join(&[&name(child), &name(target)]);
        self.entry(opcode::SYMLINK, parent, &arguments)
            .map(|entry| entry.nodeid)
    }

    pub fn readlink(&mut self, node: u64) -> Result<String, i32> {
        self.call(opcode::READLINK, node, &[], 4096)
            .map(|body| String::from_utf8(body).unwrap())
    }

    pub fn link(&mut self, node: u64, parent: u64, child: &str) -> Result<u64, i32> {
        let arguments = LinkIn { oldnodeid: node };
        let arguments = join(&[arguments.as_slice(), &name(child)]);
        self.entry(opcode::LINK, parent, &arguments)
            .map(|entry| entry.nodeid)
    }

    pub fn unlink(&mut self, parent: u64, child: &str) -> Result<(), i32> {
        self.plain(opcode::UNLINK, parent, &name(child))
    }

    pub fn rmdir(&mut self, parent: u64, child: &str) -> Result<(), i32> {
        self.plain(opcode::RMDIR, parent, &name(child))
    }

    pub fn rename(&mut self, from: (u64, &str), to: (u64, &str), flags: u32) -> Result<(), i32> {
        let arguments = Rename2In {
            newdir: to.0,
            flags,
            padding: 0,
        };
        let arguments = join(&[arguments.as_slice(), &name(from.1), &name(to.1)]);
        self.plain(opcode::RENAME2, from.0, &arguments)
    }

    pub fn setxattr(&mut self, node: u64, attribute: &str, value: &[u8]) -> Result<(), i32> {
        // SetxattrIn with SETXATTR_EXT.
        let mut arguments = u32::try_from(value.len()).unwrap().to_le_bytes().to_vec();
        arguments.extend([0; 12]);
        arguments.extend(name(attribute));
        arguments.extend(value);
        self.plain(opcode::SETXATTR, node, &arguments)
    }

    pub fn getxattr(&mut self, node: u64, attribute: &str) -> Answer {
        let mut arguments = 256u32.to_le_bytes().to_vec();
        arguments.extend([0; 4]);
        arguments.extend(name(attribute));
        self.call(opcode::GETXATTR, node, &arguments, 256)
    }

    pub fn listxattr(&mut self, node: u64) -> Result<Vec<String>, i32> {
        let mut arguments = 256u32.to_le_bytes().to_vec();
        arguments.extend([0; 4]);
        let names = self.call(opcode::LISTXATTR, node, &arguments, 256)?;
        let names = names
            .split(|byte| *byte == 0)
            .filter(|name| !name.is_empty());
        Ok(names
            .map(|name| String::from_utf8(name.to_vec()).unwrap())
            .collect())
    }

    pub fn statfs(&mut self, node: u64) -> Result<StatfsOut, i32> {
        self.call(opcode::STATFS, node, &[], room::<StatfsOut>())
            .map(|body| object(&body))
    }

    pub fn lseek(&mut self, node: u64, fh: u64, offset: u64, whence: i32) -> Result<u64, i32> {
        let arguments = LseekIn {
            fh,
            offset,
            whence: whence.cast_unsigned(),
            padding: 0,
        };
        self.call(
            opcode::LSEEK,
            node,
            arguments.as_slice(),
            room::<LseekOut>(),
        )
        .map(|body| object::<LseekOut>(&body).offset)
    }

    pub fn fallocate(
        &mut self,
        node: u64,
        fh: u64,
        mode: i32,
        range: (u64, u64),
    ) -> Result<(), i32> {
        let arguments = FallocateIn {
            fh,
            offset: range.0,
            length: range.1,
            mode: mode.cast_unsigned(),
            padding: 0,
        };
        self.plain(opcode::FALLOCATE, node, arguments.as_slice())
    }

    pub fn opendir(&mut self, node: u64) -> Result<u64, i32> {
        let arguments = OpenIn::default();
        self.call(
            opcode::OPENDIR,
            node,
            arguments.as_slice(),
            room::<OpenOut>(),
        )
        .map(|body| object::<OpenOut>(&body).fh)
    }

    /// The names in a directory, by READDIR or READDIRPLUS.
    pub fn list(&mut self, node: u64, plus: bool) -> Vec<String> {
        let fh = self.opendir(node).unwrap();
        let mut names = Vec::new();
        let mut offset = 0;
        loop {
            let arguments = ReadIn {
                fh,
                offset,
                size: 4096,
                ..ReadIn::default()
            };
            let code = if plus {
                opcode::READDIRPLUS
            } else {
                opcode::READDIR
            };
            let body = self.call(code, node, arguments.as_slice(), 4096).unwrap();
            let mut rest = &body[..];
            if rest.is_empty() {
                return names;
            }
            let skip = if plus { size_of::<EntryOut>() } else { 0 };
            while !rest.is_empty() {
                let entry = &rest[skip..];
                offset = u64::from_le_bytes(entry[8..16].try_into().unwrap());
                let length = u32::from_le_bytes(entry[16..20].try_into().unwrap());
                let length = usize::try_from(length).unwrap();
                names.push(String::from_utf8(entry[24..24 + length].to_vec()).unwrap());
                rest = &rest[skip + (24 + length).next_multiple_of(8)..];
            }
        }
    }

    /// FORGET goes over the hiprio queue and has no answer.
    pub fn forget(&mut self, node: u64, nlookup: u64) {
        let arguments = ForgetIn { nlookup };
        let request = self.encode(opcode::FORGET, node, arguments.as_slice());
        self.put(0, 0, &request, 0);
        self.kick(0);
        assert_eq!(self.wait(0), (0, 0));
    }
}
