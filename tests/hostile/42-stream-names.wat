;; Names that are no names, or the host's: by the number of the message a tag of a cluster, a line's end, a NUL, 10 KB, none at
;; all, the dead letters, a key of the host's.
(data (i32.const 1200) "{tag}stream:x")
(data (i32.const 1220) "stream:\nx")
(data (i32.const 1240) "stream:\00x")
(data (i32.const 1260) "stream:dead_letter")
(data (i32.const 1300) "cofferdam:format")
(data (i32.const 1400) "\b0\04\00\00\0d\00\00\00" "\c4\04\00\00\09\00\00\00" "\d8\04\00\00\09\00\00\00" "\e0\2e\00\00\10\27\00\00"
  "\00\00\00\00\00\00\00\00" "\ec\04\00\00\12\00\00\00" "\14\05\00\00\10\00\00\00")
(func $handle (param $m i32) (result i32)
  (call $event (i32.const 0) (i32.const 1040) (i32.const 7))
  (memory.fill (i32.const 12000) (i32.const 97) (i32.const 10000))
  (i32.store (i32.const 4096) (i32.load (i32.add (i32.const 1400) (i32.mul (call $n (local.get $m)) (i32.const 8)))))
  (i32.store offset=4 (i32.const 4096) (i32.load offset=4 (i32.add (i32.const 1400) (i32.mul (call $n (local.get $m)) (i32.const 8)))))
  (call $ok (i32.const 1)))
