package profile

import (
	"cmp"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// A cache keeps what is computed from a kernel's tables (the indices of names)
// between runs. It is addressed by content: an entry's name is a keyed digest of
// the very table bytes that were found in this guest's memory, not what the
// guest says of itself. A guest that claims another kernel's build-id, with
// tables of its own making, so gets an entry of its own; no guest can place
// anything under another's. Tables are always taken from memory, and every
// answer is compared with them.
//
// The digest is GMAC (AES-GCM over no plaintext) under a random key that is
// kept in the cache's folder: guests see neither the key nor a digest, which is
// what a MAC needs for two different tables not to be given the same one but
// by chance (2^-100 or so for tables of this size), and it takes a fifth of
// SHA-256's time, which would eat what the cache saves. The same key seals the
// entries, so that a damaged one, or one of another folder, is not believed.
type cache struct {
	dir string
	mac cipher.AEAD
	log *slog.Logger
}

const (
	cacheVersion = "vantage-profile-1\n"
	cacheKeyName = "key"
	cacheKeyLen  = 32
	cacheSuffix  = ".index"
	// maxCacheFiles and maxCacheFile bound what a guest that changes its
	// tables again and again can make of the cache: files, and bytes of each.
	maxCacheFiles = 128
	maxCacheFile  = 64 << 20
)

// What a digest is of: nonces of GMAC.
const (
	nonceTable   = "tables\x00\x00\x00\x00\x00\x00"
	nonceDigest  = "digest\x00\x00\x00\x00\x00\x00"
	nonceContent = "content\x00\x00\x00\x00\x00"
)

type digest [16]byte

var errCacheFolder = errors.New("cache folder belongs to, or can be written by, someone else")

// openCache opens the cache in dir, which it creates.
func openCache(dir string, log *slog.Logger) (*cache, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open profile cache: %w", err)
	}
	st, err := os.Stat(dir)
	if err != nil {
		return nil, fmt.Errorf("open profile cache: %w", err)
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); st.Mode().Perm()&0o022 != 0 || ok && int(sys.Uid) != os.Geteuid() {
		return nil, fmt.Errorf("open profile cache: %w", errCacheFolder)
	}
	key, err := cacheKey(dir)
	if err != nil {
		return nil, fmt.Errorf("open profile cache: %w", err)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("open profile cache: %w", err)
	}
	mac, err := cipher.NewGCM(block)
	if err != nil {
		return nil, fmt.Errorf("open profile cache: %w", err)
	}
	return &cache{dir: dir, mac: mac, log: log}, nil
}

// cacheKey returns the folder's key, which it makes the first time.
func cacheKey(dir string) ([]byte, error) {
	path := filepath.Join(dir, cacheKeyName)
	for range 2 {
		key, err := os.ReadFile(path)
		if err == nil && len(key) == cacheKeyLen {
			return key, nil
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		if err == nil { // not whole: nothing sealed with it can be of use
			if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, err
			}
		}
		key = make([]byte, cacheKeyLen)
		rand.Read(key) // never fails
		tmp, err := writeTemp(dir, key)
		if err != nil {
			return nil, err
		}
		// A link does not replace the key that another process just made.
		err = os.Link(tmp, path)
		_ = os.Remove(tmp)
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
	}
	return nil, errors.New("the key cannot be made")
}

func writeTemp(dir string, data []byte) (string, error) {
	f, err := os.CreateTemp(dir, ".tmp-*") // mode 0600
	if err != nil {
		return "", err
	}
	_, err = f.Write(data)
	if err := cmp.Or(err, f.Close()); err != nil {
		_ = os.Remove(f.Name())
		return "", err
	}
	return f.Name(), nil
}

func (c *cache) sum(nonce string, b []byte) (d digest) {
	c.mac.Seal(d[:0], []byte(nonce), nil, b)
	return d
}

// digest returns the digest of parts, told apart by kind.
func (c *cache) digest(kind string, parts ...[]byte) digest {
	list := []byte(cacheVersion + kind)
	for _, p := range parts {
		s := c.sum(nonceTable, p)
		list = binary.LittleEndian.AppendUint64(list, uint64(len(p)))
		list = append(list, s[:]...)
	}
	return c.sum(nonceDigest, list)
}

func (c *cache) path(kind string, d digest) string {
	return filepath.Join(c.dir, kind+"-"+hex.EncodeToString(d[:])+cacheSuffix)
}

// load returns the entry for d; nil when there is none that can be believed.
func (c *cache) load(kind string, d digest) []byte {
	path := c.path(kind, d)
	st, err := os.Stat(path)
	if err != nil || st.Size() > maxCacheFile {
		return nil
	}
	b, err := os.ReadFile(path)
	head := len(cacheVersion) + len(d)
	if err != nil || len(b) < head+len(d) || string(b[:len(cacheVersion)]) != cacheVersion || digest(b[len(cacheVersion):head]) != d {
		c.log.Warn("profile cache entry ignored", "kind", kind, "error", err)
		return nil
	}
	end := len(b) - len(d)
	if c.sum(nonceContent, b[:end]) != digest(b[end:]) {
		c.log.Warn("damaged profile cache entry ignored", "kind", kind)
		return nil
	}
	return b[head:end]
}

// store keeps content for d. What goes wrong is logged: a cache is no result.
func (c *cache) store(kind string, d digest, content []byte) {
	b := make([]byte, 0, len(cacheVersion)+len(content)+2*len(d))
	b = append(append(append(b, cacheVersion...), d[:]...), content...)
	s := c.sum(nonceContent, b)
	b = append(b, s[:]...)
	if len(b) > maxCacheFile {
		return
	}
	tmp, err := writeTemp(c.dir, b)
	if err == nil {
		if err = os.Rename(tmp, c.path(kind, d)); err != nil {
			_ = os.Remove(tmp)
		}
	}
	if err != nil {
		c.log.Warn("profile cache entry not written", "kind", kind, "error", err)
		return
	}
	c.prune()
}

// prune removes the oldest entries above maxCacheFiles.
func (c *cache) prune() {
	entries, err := os.ReadDir(c.dir)
	if err != nil || len(entries) <= maxCacheFiles {
		return
	}
	var files []fs.FileInfo
	for _, e := range entries {
		if info, err := e.Info(); err == nil && strings.HasSuffix(e.Name(), cacheSuffix) {
			files = append(files, info)
		}
	}
	slices.SortFunc(files, func(a, b fs.FileInfo) int { return a.ModTime().Compare(b.ModTime()) })
	for _, f := range files[:max(0, len(files)-maxCacheFiles)] {
		_ = os.Remove(filepath.Join(c.dir, f.Name()))
	}
}

// cached is something whose index the cache keeps.
type cached struct {
	kind    string
	digest  digest
	content func() []byte // to be stored; nil when it was loaded
}

// storeAll stores what was not loaded.
func (c *cache) storeAll(ctx context.Context, items []cached) {
	for _, i := range items {
		if i.content != nil && ctx.Err() == nil {
			c.store(i.kind, i.digest, i.content())
		}
	}
}

func appendWords(b []byte, words []uint64) []byte {
	for _, w := range words {
		b = binary.LittleEndian.AppendUint64(b, w)
	}
	return b
}

func words(b []byte) []uint64 {
	out := make([]uint64, len(b)/8)
	for i := range out {
		out[i] = leUint64(b[8*i:])
	}
	return out
}
