package linux

import "time"

const (
	// minorBits is MINORBITS, include/linux/kdev_t.h.
	minorBits = 20
	// oCloexec is O_CLOEXEC, include/uapi/asm-generic/fcntl.h.
	oCloexec = 0o2000000
	// ctimeQueried is I_CTIME_QUERIED, include/linux/fs.h: since 6.13 a mark of
	// the kernel's own among the bits of i_ctime_nsec.
	ctimeQueried = 1 << 31
	// More kinds of inodes (include/uapi/linux/stat.h).
	sIFSOCK = 0o140000
	sIFBLK  = 0o060000
	sIFCHR  = 0o020000
	sIFIFO  = 0o010000
)

// fileFields is where the facts of open files, their inodes and file systems
// lie, beyond what naming them needs (fsFields).
type fileFields struct {
	inode, flags, pos field // in file

	mode, uid, gid, sb, ino, nlink, rdev, size field // in inode
	atime, atimeNS, mtime, mtimeNS             field
	ctime, ctimeNS                             field
	inodeSpan                                  span
	private                                    field // inode.i_private

	sbDev, sbType  field // in super_block
	sbSpan         span
	dInode         field // in dentry
	mountNS        field // in mount
	nsOps, opsName field // in ns_common and proc_ns_operations
}

func (f *fileFields) facts() []fact {
	return []fact{
		{&f.inode, 8, must, []string{"file.f_inode"}},
		{&f.flags, 4, want, []string{"file.f_flags"}},
		{&f.pos, 8, want, []string{"file.f_pos"}},

		{&f.mode, 2, must, []string{"inode.i_mode"}},
		{&f.uid, 4, want, []string{"inode.i_uid"}},
		{&f.gid, 4, want, []string{"inode.i_gid"}},
		{&f.sb, 8, want, []string{"inode.i_sb"}},
		{&f.ino, 8, want, []string{"inode.i_ino"}},
		{&f.nlink, 4, want, []string{"inode.i_nlink"}},
		{&f.rdev, 4, want, []string{"inode.i_rdev"}},
		{&f.size, 8, want, []string{"inode.i_size"}},
		// struct timespec64 until 6.10, with underscores from 6.6 on.
		{&f.atime, 8, want, []string{"inode.i_atime_sec", "inode.__i_atime.tv_sec", "inode.i_atime.tv_sec"}},
		{&f.atimeNS, 0, want, []string{"inode.i_atime_nsec", "inode.__i_atime.tv_nsec", "inode.i_atime.tv_nsec"}},
		{&f.mtime, 8, want, []string{"inode.i_mtime_sec", "inode.__i_mtime.tv_sec", "inode.i_mtime.tv_sec"}},
		{&f.mtimeNS, 0, want, []string{"inode.i_mtime_nsec", "inode.__i_mtime.tv_nsec", "inode.i_mtime.tv_nsec"}},
		{&f.ctime, 8, want, []string{"inode.i_ctime_sec", "inode.__i_ctime.tv_sec", "inode.i_ctime.tv_sec"}},
		{&f.ctimeNS, 0, want, []string{"inode.i_ctime_nsec", "inode.__i_ctime.tv_nsec", "inode.i_ctime.tv_nsec"}},
		{&f.private, 8, want, []string{"inode.i_private"}},

		{&f.sbDev, 4, want, []string{"super_block.s_dev"}},
		{&f.sbType, 8, want, []string{"super_block.s_type"}},
		{&f.dInode, 8, want, []string{"dentry.d_inode"}},
		{&f.mountNS, 8, want, []string{"mount.mnt_ns"}},
		{&f.nsOps, 8, want, []string{"ns_common.ops"}},
		{&f.opsName, 8, want, []string{"proc_ns_operations.name"}},
	}
}

func (f *fileFields) symbols() []symbol { return nil }

func (f *fileFields) finish(types) {
	f.inodeSpan = spanOf(f.mode, f.uid, f.gid, f.sb, f.ino, f.nlink, f.rdev, f.size,
		f.atime, f.atimeNS, f.mtime, f.mtimeNS, f.ctime, f.ctimeNS)
	f.sbSpan = spanOf(f.sbDev, f.sbType)
}

// fileTime returns the time of an inode, zero when it cannot be one: JSON has no
// year beyond 9999.
func fileTime(sec, nsec uint64) time.Time {
	const least, most = -62135596800, 253402300799 // the years 1 to 9999
	if s := int64(sec); s < least || s > most || nsec >= uint64(time.Second) {
		return time.Time{}
	}
	return time.Unix(int64(sec), int64(nsec)).UTC()
}

// fileTypeOf returns what the mode of an inode says that it is.
func fileTypeOf(mode uint32) FileType {
	switch mode & sIFMT {
	case sIFREG:
		return TypeRegular
	case sIFDIR:
		return TypeDirectory
	case sIFCHR:
		return TypeCharDev
	case sIFBLK:
		return TypeBlockDev
	case sIFIFO:
		return TypeFIFO
	case sIFSOCK:
		return TypeSocket
	case sIFLNK:
		return TypeLink
	}
	return TypeUnknown
}
