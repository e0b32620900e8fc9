-- Shared by the scripts that change runs; put in front of each by Script.load.
-- KEYS[1..12] are the same in all of them (Keys.run_scripts); from KEYS[13] three for each item: record, live, ledger.
-- ARGV[1] is ledger_length in all of them.
local LEADER, DUE, WAKE, LEASES, CANCEL, PAUSED = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local STREAMS = {high = KEYS[7], low = KEYS[8]}
local DEAD, EVENTS, RUNS, GENERATION = KEYS[9], KEYS[10], KEYS[11], KEYS[12]
local GROUP, LEDGER_LENGTH = 'workers', ARGV[1]

local clock = redis.call('TIME')
local NOW = clock[1] * 1000 + math.floor(clock[2] / 1000)

-- Lua would write 1764000000000 as 1.764e+12.
local function int(number)
  return string.format('%.0f', number)
end

local STATES = {queued = true, parked = true, running = true, waiting = true}
local FIELDS = {'state', 'task', 'slot', 'attempt', 'deliveries', 'worker', 'fence', 'token', 'ended', 'entry',
  'priority', 'overlap', 'force', 'abandoned', 'removed', 'cancel', 'defers', 'waits', 'spared',
  'story'}

-- While the workers tell Redis again what it forgot nobody leads (enter.lua), and nothing that they have not told yet may
-- be overtaken: a caller hears that Redis is unavailable, and repeats.
local RECOVERING = 'RECOVERING what was forgotten is being told again'
local function recovering()
  return string.sub(redis.call('GET', LEADER) or '', 1, 1) == ':'
end

-- The record of a run; its state is nil when there is no such run. Redis looks through the record for each field, so
-- scripts of which every run needs one ask for those that they need.
local function load(id, key, live, ledger, fields)
  fields = fields or FIELDS
  local values = redis.call('HMGET', key, unpack(fields))
  local run = {id = id, key = key, live = live, ledger = ledger}
  for i = 1, #fields do run[fields[i]] = values[i] or nil end
  if run.state and not STATES[run.state] then error('the record of ' .. id .. ' has no state of ours', 0) end
  return run
end

-- The record of item number i of this call.
local function item(i, id, fields)
  local at = 13 + (i - 1) * 3
  return load(id, KEYS[at], KEYS[at + 1], KEYS[at + 2], fields)
end

-- The keys that all items share. One of another type refuses the whole call, while nothing is written yet.
local function intact()
  for _, key in ipairs({DUE, LEASES}) do redis.call('ZCARD', key) end
  for _, key in ipairs({WAKE, DEAD, STREAMS.high, STREAMS.low}) do redis.call('XLEN', key) end
  redis.call('SCARD', CANCEL)
  redis.call('HLEN', PAUSED)
  redis.call('HLEN', GENERATION)
end

-- Decide about every item before the first write, since Lua does not roll back; then do what was decided.
-- decide(i) returns a reply, and a function that does it or nil. An item whose keys are broken (another type)
-- answers {'broken', why} and stops no other.
local function each(count, decide)
  local replies, acts, any = {}, {}, false
  for i = 1, count do
    local fine, reply, act = pcall(decide, i)
    if fine then
      replies[i], acts[i], any = reply, act, any or act ~= nil
    else
      replies[i] = {'broken', type(reply) == 'table' and reply.err or tostring(reply)}
    end
  end
  if any then intact() end
  for i = 1, count do
    if acts[i] then acts[i]() end
  end
  return replies
end

local any_paused
local function paused(task)
  if any_paused == nil then any_paused = redis.call('HLEN', PAUSED) > 0 end
  local pause = any_paused and redis.call('HGET', PAUSED, task)
  if not pause then return false end
  local till = tonumber(string.match(pause, '^(%d+)|'))
  return not till or till == 0 or till > NOW -- what is no pause of ours keeps the task from running until it is resumed
end

-- Is there a run of this task, other than the given one, in one of these states?
local function others(live, id, states)
  local found = redis.call('HGETALL', live)
  for i = 1, #found, 2 do
    if found[i] ~= id and states[found[i + 1]] and redis.call('HGET', RUNS .. found[i], 'state') == found[i + 1] then
      return true
    end
  end
  return false
end

-- A number of no more digits than Lua counts on from. Most runs of a call have the same few.
local wholes = {}
local function whole(text)
  if not text then return nil end
  if wholes[text] == nil then wholes[text] = #text < 16 and string.match(text, '^%d+$') or false end
  return wholes[text]
end

-- A key of another type, or a record with holes, is found here, while nothing is written yet.
local function check(run)
  redis.call('XLEN', run.ledger)
  redis.call('HLEN', run.live)
  if not run.state then return end
  if not (run.task and string.sub(run.id, 1, #run.task + 1) == run.task .. '@' and (run.slot == '' or whole(run.slot))
      and STREAMS[run.priority] and whole(run.attempt) and whole(run.deliveries) and whole(run.fence)) then
    error('the record of ' .. run.id .. ' is incomplete, or not as Troupe writes it', 0)
  end
end

local function lease(run)
  return run.id .. '#' .. run.fence
end

-- The coordinator keeps the next ten seconds of due in memory and reads no others (WINDOW_MS of actors/agenda.py): tell
-- it what comes into them.
local function wake(member, at)
  if at <= NOW + 10000 then
    redis.call('XADD', WAKE, 'MAXLEN', '~', 100, '*', 'due', member, 'at', int(at))
  end
end

-- Put a run into its stream. Growing first: refused whole when memory is full, if it is the script's first write.
local function enqueue(run)
  run.entry = redis.call('XADD', STREAMS[run.priority], '*', 'run', run.id)
  redis.call('HSET', run.key, 'state', 'queued', 'entry', run.entry)
  redis.call('HSET', run.live, run.id, 'queued')
end

-- Put a run into its stream that was never there.
local function create(run, task, slot, priority, overlap)
  run.priority = priority
  enqueue(run)
  redis.call('HSET', run.key, 'task', task, 'slot', slot, 'attempt', 1, 'deliveries', 0, 'fence', 0,
    'priority', priority, 'overlap', overlap)
end

-- The next fence of a run: greater than its last, and than any that Redis may have forgotten.
local floor
local function next_fence(run)
  if not floor then
    local known = redis.call('HGET', GENERATION, 'floor')
    floor = whole(known) and tonumber(known) or 0
  end
  return int(math.max(run.fence + 1, NOW, floor))
end

-- Has this worker read this entry, and it is not acknowledged yet? After FLUSHALL there is no group, and nothing is.
local function has_read(worker, stream, entry)
  local pending = redis.pcall('XPENDING', stream, GROUP, entry, entry, 1, worker)
  if not pending.err then return #pending == 1 end
  if not string.find(tostring(pending.err), 'NOGROUP', 1, true) then error(pending, 0) end
  return false
end

-- What this worker has read of the streams and not acknowledged, between the first and the last of these entries:
-- entry -> stream. Entries that are read together follow each other, so that one question answers for all of them.
local function read_between(worker, entries)
  local found = {}
  for stream, ids in pairs(entries) do
    local pending = redis.pcall('XPENDING', stream, GROUP, ids[1], ids[#ids], 2 * #ids, worker)
    for _, one in ipairs(pending.err and {} or pending) do found[one[1]] = stream end
  end
  return found
end

-- How many runs of a stream no worker has read. Entries stay until their runs end, those of runs in progress too.
local function unread(stream)
  local length = redis.call('XLEN', stream)
  local pending = redis.pcall('XPENDING', stream, GROUP) -- an error when nobody has ever read: there is no group
  return length - (pending.err and 0 or pending[1])
end

local function drop_entry(run)
  if run.entry and run.entry ~= '' then
    redis.call('XACK', STREAMS[run.priority], GROUP, run.entry)
    redis.call('XDEL', STREAMS[run.priority], run.entry)
  end
end

-- The last 20 attempts, one line of opaque JSON each, the newest last.
local function tell(run, line)
  local story, lines = run.story or '', {}
  for old in string.gmatch(story, '[^\n]+') do lines[#lines + 1] = old end
  if line ~= '' then lines[#lines + 1] = line end
  run.story = table.concat(lines, '\n', math.max(1, #lines - 19))
end

-- One ledger entry for neighbouring slots that did not run for the same reason. Neighbours: the entry says which slot
-- comes after it, so a slot that was published in between, and may still be running, parts them. Growing first, see
-- enqueue.
local function passed_over(ledger, verdict, reason, from, to, count, next_at)
  local last = redis.call('XREVRANGE', ledger, '+', '-', 'COUNT', 1)[1]
  local old = {}
  if last then
    for i = 1, #last[2], 2 do old[last[2][i]] = last[2][i + 1] end
  end
  local joined = old.next == from and old.verdict == verdict and old.reason == reason and old.from and whole(old.count)
  if joined then from, count = old.from, old.count + count end
  redis.call('XADD', ledger, 'MAXLEN', '~', LEDGER_LENGTH, '*', 'verdict', verdict, 'reason', reason,
    'from', from, 'to', to, 'count', int(count), 'next', next_at)
  if joined then redis.call('XDEL', ledger, last[1]) end
end

-- End runs, each with its verdict and reason: record, lease, live entry, due entry and stream entry go, the verdict stays.
-- Freeing first, so that it gets through when memory is full; what they share in one command for all of them, since there
-- may be hundreds. A removed task's run leaves no verdict; an abandoned run has its verdict already. Of a run whose record
-- is lost, what names it goes.
local function finish_all(runs)
  local due, leases, records, entries = {}, {}, {}, {}
  for i, run in ipairs(runs) do
    due[i] = 'r/' .. run.id
    redis.call('HDEL', run.live, run.id)
    if run.state then
      leases[#leases + 1], records[#records + 1] = lease(run), run.key
      if run.entry and run.entry ~= '' then
        local stream = STREAMS[run.priority]
        entries[stream] = entries[stream] or {}
        table.insert(entries[stream], run.entry)
      end
    end
  end
  if #due > 0 then redis.call('ZREM', DUE, unpack(due)) end
  if #records > 0 then
    redis.call('ZREM', LEASES, unpack(leases))
    redis.call('SREM', CANCEL, unpack(leases))
    redis.call('DEL', unpack(records))
  end
  for stream, ids in pairs(entries) do
    redis.call('XACK', stream, GROUP, unpack(ids))
    redis.call('XDEL', stream, unpack(ids))
  end
  for _, run in ipairs(runs) do
    if run.state and not (run.abandoned or run.removed) then
      redis.call('XADD', run.ledger, 'MAXLEN', '~', LEDGER_LENGTH, '*', 'verdict', run.verdict, 'reason', run.reason,
        'run', run.id, 'slot', run.slot, 'attempt', run.attempt, 'story', run.story or '')
    end
  end
end

local function finish(run, verdict, reason)
  run.verdict, run.reason = verdict, reason
  finish_all({run})
end

-- Retries that wait of the run's task: where runs do not overlap, whatever is queued takes their place.
local function retries_before(run)
  local found, retries = redis.call('HGETALL', run.live), {}
  for i = 1, #found, 2 do
    if found[i + 1] == 'waiting' then
      local retry = load(found[i], RUNS .. found[i], run.live, run.ledger)
      check(retry)
      retries[#retries + 1] = retry
    end
  end
  return retries
end

-- Give up on a run: kept whole in the dead stream, for whoever decides to run it again.
local function bury_run(run, reason)
  local record, rest = redis.call('HGETALL', run.key), {}
  for i = 1, #record, 2 do
    if record[i] ~= 'story' then -- the record's own lacks the last attempt
      rest[#rest + 1] = record[i]
      rest[#rest + 1] = record[i + 1]
    end
  end
  redis.call('XADD', DEAD, 'MAXLEN', '~', 10000, '*', 'run', run.id, 'reason', reason, 'at', int(NOW),
    'story', run.story or '', unpack(rest))
end

-- Say to everybody what somebody did. Check EVENTS before the first write of the script.
local function announce(event, what, who)
  redis.call('XADD', EVENTS, 'MAXLEN', '~', 1000, '*', 'event', event, 'what', what, 'who', who)
end

-- Decide about a run that no slot asks for: a reply, and a function that queues it. It supersedes as a slot does.
local asked = {} -- earlier in this call: run id and live index -> true, stream -> its length
local function ask(run, task, priority, overlap, force, kwargs, cap)
  local stream = STREAMS[priority]
  if not (stream and overlap) then error(task .. ' has no such priority, or no overlap policy', 0) end
  check(run)
  if run.state or asked[run.id] then return 'queued' end
  if not force and paused(task) then return 'paused' end
  local busy = {queued = true, running = true, parked = true}
  if overlap == 'skip' and (asked[run.live] or others(run.live, run.id, busy)) then return 'overlap' end
  local ahead = asked[stream] or unread(stream)
  if ahead >= cap then return 'queue full' end
  local retries = overlap == 'allow' and {} or retries_before(run)
  asked[stream], asked[run.id], asked[run.live] = ahead + 1, true, true
  return 'queued', function()
    create(run, task, '', priority, overlap)
    if force then redis.call('HSET', run.key, 'force', 1) end
    if kwargs ~= '' then redis.call('HSET', run.key, 'kwargs', kwargs) end
    for _, retry in ipairs(retries) do finish(retry, 'failed', 'superseded') end
  end
end

-- As each, once for each operation: its repeat gets the same replies and changes nothing, but for items that were broken.
-- what(i) names item i for the event. Freeing first: gets through when memory is full.
local function once(key, event, who, count, decide, what)
  redis.call('XLEN', EVENTS)
  local kept, lines, changed, decided = {}, {}, {}, false
  for line in string.gmatch(redis.call('GET', key) or '', '[^\n]+') do
    local words = {}
    for word in string.gmatch(line, '[^\t]+') do words[#words + 1] = word end
    kept[#kept + 1] = #words > 1 and words or line
  end
  local replies = each(count, function(i)
    if kept[i] and kept[i] ~= 'broken' then return kept[i] end
    local reply, act = decide(i)
    decided = true
    return reply, act and function()
      act()
      changed[#changed + 1] = what(i)
    end
  end)
  if not decided then return replies end
  for i, reply in ipairs(replies) do
    if type(reply) ~= 'table' then
      lines[i] = reply
    else
      lines[i] = reply[1] == 'broken' and 'broken' or table.concat(reply, '\t')
    end
  end
  redis.call('DEL', key)
  redis.call('SET', key, table.concat(lines, '\n'), 'EX', 600)
  if #changed > 0 then announce(event, table.concat(changed, ' '), who) end
  return replies
end
