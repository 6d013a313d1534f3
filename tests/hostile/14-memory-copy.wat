;; Copies 16 MB to and fro.
(func $handle (param $m i32) (result i32)
  (drop (memory.grow (i32.const 520)))
  (loop $on (memory.copy (i32.const 65536) (i32.const 16500000) (i32.const 16000000)) (br $on))
  (i32.const 0))
