;; One output of 60 MB.
(func $handle (param $m i32) (result i32)
  (drop (memory.grow (i32.const 930)))
  (memory.fill (i32.const 65536) (i32.const 49) (i32.const 60000000))
  (call $event (i32.const 0) (i32.const 65536) (i32.const 60000000)) (call $ok (i32.const 1)))
