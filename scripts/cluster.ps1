# A cluster on this machine, for trying things out:
#
#   scripts/cluster.ps1 start [N] | stop | status | kill ID | restart ID | add | clean
#
# Nodes listen on 127.0.0.1:7101 and the ports after it (KONTIKI_PORT changes the first one); data, logs and pid files
# lie under ./.cluster (KONTIKI_DIR changes that). The number of nodes and the first port are remembered there.
# KONTIKI_BIN names a binary to use instead of building one. Written for PowerShell 5.1; needs cargo, nothing else.
# The log of a node's earlier lives is appended to nI.old.log, because a redirected process always starts a new file.
param([string]$Verb = '', [string]$Word = '', [Parameter(ValueFromRemainingArguments = $true)][string[]]$Rest = @())

Set-StrictMode -Version 2
$ErrorActionPreference = 'Stop'

$HostName = '127.0.0.1'
$NodesDefault = 3
$NodesMax = 15           # more voters than this help nobody, least of all on one machine
$WaitReadySeconds = 30   # a first start has to create files and elect a leader; a slow disk takes its time
$WaitGoneSeconds = 5     # a process that was told to end needs milliseconds
$ReplyMs = 2000          # a node that takes longer to answer /health is not serving
$LogTailLines = 15
$Self = 'scripts/cluster.ps1'
$Top = Split-Path -Parent $PSScriptRoot
$OnWindows = $env:OS -eq 'Windows_NT'

function Fail([string]$Message, [int]$Code = 1) {
    [Console]::Error.WriteLine("${Self}: $Message")
    exit $Code
}
function Fail-Usage([string]$Message) {
    Fail "$Message; usage: $Self start [N] | stop | status | kill ID | restart ID | add | clean" 2
}
function Get-Number([string]$Text) {
    if ($Text -match '^[0-9]{1,5}$') { return [int]$Text }
    return -1
}

# --- the directory and what it remembers ---

$Directory = $env:KONTIKI_DIR
if (-not $Directory) { $Directory = Join-Path '.' '.cluster' }
$Directory = $ExecutionContext.SessionState.Path.GetUnresolvedProviderPathFromPSPath($Directory)
$Marker = Join-Path $Directory '.kontiki-cluster'  # says that the directory is ours, and holds what is remembered
$script:First = 0  # members the cluster began with
$script:Nodes = 0  # nodes now, those that were added included
$script:Port = 0
$script:Started = @()

function Read-Cluster {
    if (-not (Test-Path -LiteralPath $Marker)) { return $false }
    $found = @{ port = -1; first = -1; nodes = -1 }
    foreach ($line in @(Get-Content -LiteralPath $Marker)) {
        if ($line -match '^(port|first|nodes)=([0-9]{1,5})$') { $found[$Matches[1]] = [int]$Matches[2] }
    }
    $script:Port = $found['port']
    $script:First = $found['first']
    $script:Nodes = $found['nodes']
    if ($script:Port -lt 1 -or $script:First -lt 1 -or $script:Nodes -lt $script:First) {
        Fail "$Marker is damaged: it should hold port=, first= and nodes="
    }
    return $true
}
function Write-Cluster {
    $text = "port=$script:Port`nfirst=$script:First`nnodes=$script:Nodes`n"
    [IO.File]::WriteAllText("$Marker.new", $text)
    Move-Item -LiteralPath "$Marker.new" -Destination $Marker -Force
}
function Confirm-Cluster {
    if (-not (Read-Cluster)) { Fail "no cluster in $Directory; begin one with: $Self start" }
}
function Confirm-Id {
    if ($Word -eq '') { Fail-Usage "$Verb takes one ID" }
    Confirm-Cluster
    $id = Get-Number $Word
    if ($id -lt 1 -or $id -gt $script:Nodes) { Fail "no node '$Word': ids are 1..$script:Nodes" 2 }
    return $id
}
function Get-Address([int]$Id) { return "${HostName}:$($script:Port + $Id - 1)" }
function Get-Addresses([int]$Count) { return (@(1..$Count | ForEach-Object { Get-Address $_ }) -join ',') }
function Get-NodePath([int]$Id, [string]$Suffix) { return (Join-Path $Directory "n$Id$Suffix") }

# --- processes ---

function Get-CommandLine([int]$ProcessId) {
    if ($OnWindows) {
        $found = Get-CimInstance Win32_Process -Filter "ProcessId = $ProcessId" -ErrorAction SilentlyContinue
        if ($found -and $found.CommandLine) { return [string]$found.CommandLine }
        return ''
    }
    return [string](@(& ps -ww -o args= -p $ProcessId) -join ' ')
}

# The process of a node when it runs, or nothing. A pid may have been given to another program since it was written down:
# only a process whose command line names the node's data directory is the node.
function Get-Node([int]$Id) {
    $file = Get-NodePath $Id '.pid'
    if (-not (Test-Path -LiteralPath $file)) { return $null }
    $text = [string](Get-Content -LiteralPath $file -TotalCount 1)
    if ($text -notmatch '^[0-9]{1,9}$') { return $null }
    $line = (Get-CommandLine ([int]$text)).Replace('"', '') + ' '
    if (-not $line.Contains(' --data ' + (Get-NodePath $Id '') + ' ')) { return $null }
    return Get-Process -Id ([int]$text) -ErrorAction SilentlyContinue
}

# Kills a node and waits until it is gone. There is no gentler way on Windows, and none is needed: the process is crash-only.
function Stop-Node([int]$Id) {
    $process = Get-Node $Id
    if ($process) {
        Stop-Process -InputObject $process -Force -ErrorAction SilentlyContinue
        if (-not $process.WaitForExit($WaitGoneSeconds * 1000)) { Fail "process $($process.Id) of node $Id does not end" }
    }
    Remove-Item -LiteralPath (Get-NodePath $Id '.pid') -Force -ErrorAction SilentlyContinue
    return [bool]$process
}

function Find-Binary([bool]$Build) {
    if ($env:KONTIKI_BIN) {
        $binary = $ExecutionContext.SessionState.Path.GetUnresolvedProviderPathFromPSPath($env:KONTIKI_BIN)
        if (-not (Test-Path -LiteralPath $binary)) { Fail "KONTIKI_BIN: $binary is not there" }
        return $binary
    }
    $target = $env:CARGO_TARGET_DIR
    if (-not $target) { $target = Join-Path $Top 'target' }
    $target = $ExecutionContext.SessionState.Path.GetUnresolvedProviderPathFromPSPath($target)
    $name = 'kontiki'
    if ($OnWindows) { $name = 'kontiki.exe' }
    $binary = Join-Path (Join-Path $target 'release') $name
    $there = Test-Path -LiteralPath $binary
    # `start` asks cargo, who knows whether the binary is up to date; the other verbs build only what is missing.
    if ($Build -or -not $there) {
        if (Get-Command cargo -ErrorAction SilentlyContinue) {
            & cargo build --release --quiet --manifest-path (Join-Path $Top 'Cargo.toml') --bin kontiki --target-dir $target | Out-Host
            if ($LASTEXITCODE -ne 0) { Fail 'cargo build --release failed' }
        } elseif (-not $there) {
            Fail "cargo is not installed (see https://rustup.rs), and there is no $binary"
        }
    }
    if (-not (Test-Path -LiteralPath $binary)) { Fail "cargo build left no $binary" }
    return $binary
}

function Test-Port([int]$Id) {
    $client = New-Object Net.Sockets.TcpClient
    try {
        $client.Connect($HostName, $script:Port + $Id - 1)
        return $true
    } catch {
        return $false
    } finally {
        $client.Close()
    }
}

# Starts a node unless it runs. KONTIKI_* variables are settings of `serve` and are passed on, except the script's own and
# those that would contradict the command line.
function Start-Node([int]$Id, [string]$Binary) {
    if (Get-Node $Id) { return }
    $address = Get-Address $Id
    if (Test-Port $Id) {
        Fail "node ${Id}: $address is taken by another process; end it, or choose other ports: $Self clean, then KONTIKI_PORT"
    }
    $log = Get-NodePath $Id '.log'
    if (Test-Path -LiteralPath $log) {
        Get-Content -LiteralPath $log | Add-Content -LiteralPath (Get-NodePath $Id '.old.log') -Encoding UTF8
    }
    $nothing = Join-Path $Directory 'empty'
    [IO.File]::WriteAllText($nothing, '')
    $how = '--join'
    if ($Id -le $script:First) { $how = '--peers' }
    $line = 'serve --data "{0}" --listen {1} {2} {3}' -f (Get-NodePath $Id ''), $address, $how, (Get-Addresses $script:First)
    $options = @{
        FilePath = $Binary; ArgumentList = $line; PassThru = $true; RedirectStandardInput = $nothing
        RedirectStandardError = $log; RedirectStandardOutput = (Get-NodePath $Id '.out')
    }
    if ($OnWindows) { $options['WindowStyle'] = 'Hidden' }
    $kept = @{}
    foreach ($name in 'KONTIKI_PORT', 'KONTIKI_DIR', 'KONTIKI_BIN', 'KONTIKI_ADVERTISE', 'KONTIKI_PEERS', 'KONTIKI_JOIN') {
        $kept[$name] = [Environment]::GetEnvironmentVariable($name)
        [Environment]::SetEnvironmentVariable($name, $null)
    }
    try {
        $process = Start-Process @options
    } finally {
        foreach ($name in $kept.Keys) { [Environment]::SetEnvironmentVariable($name, $kept[$name]) }
    }
    [IO.File]::WriteAllText((Get-NodePath $Id '.pid'), "$($process.Id)`n")
    $script:Started += @{ Id = $Id; Process = $process }
}

# --- waiting ---

# The status code of GET $Path at a node, 0 when there is no answer.
function Get-Status([int]$Id, [string]$Path) {
    $client = New-Object Net.Sockets.TcpClient
    try {
        $client.Connect($HostName, $script:Port + $Id - 1)
        $stream = $client.GetStream()
        $stream.ReadTimeout = $ReplyMs
        $request = [Text.Encoding]::ASCII.GetBytes("GET $Path HTTP/1.1`r`nHost: $HostName`r`nConnection: close`r`n`r`n")
        $stream.Write($request, 0, $request.Length)
        $reader = New-Object IO.StreamReader($stream)
        $parts = ([string]$reader.ReadLine()).Split(' ')
        if ($parts.Length -ge 2 -and $parts[1] -match '^[0-9]{3}$') { return [int]$parts[1] }
        return 0
    } catch {
        return 0
    } finally {
        $client.Close()
    }
}

function Show-Log([int]$Id) {
    $log = Get-NodePath $Id '.log'
    if (-not (Test-Path -LiteralPath $log)) { return }
    foreach ($line in @(Get-Content -LiteralPath $log -Tail $LogTailLines)) { [Console]::Error.WriteLine("  n$Id.log: $line") }
}

# Waits until $Check answers true; the nodes just started must stay alive meanwhile, else their log says why they did not.
function Wait-Until([scriptblock]$Check) {
    $clock = [Diagnostics.Stopwatch]::StartNew()
    while ($true) {
        foreach ($node in $script:Started) {
            if ($node.Process.HasExited) {
                Show-Log $node.Id
                Remove-Item -LiteralPath (Get-NodePath $node.Id '.pid') -Force -ErrorAction SilentlyContinue
                Fail "node $($node.Id) ($(Get-Address $node.Id)) ended; the last lines of its log are above"
            }
        }
        if (& $Check) { return $true }
        if ($clock.Elapsed.TotalSeconds -ge $WaitReadySeconds) {
            foreach ($node in $script:Started) { Show-Log $node.Id }
            return $false
        }
        Start-Sleep -Milliseconds 50
    }
}

# The id of a leader that serves, 0 while there is none or a node that was just started does not answer yet.
function Get-Leader {
    foreach ($node in $script:Started) { if ((Get-Status $node.Id '/health') -eq 0) { return 0 } }
    foreach ($id in 1..$script:Nodes) {
        if ((Get-Status $id '/health/leader') -eq 200 -and (Get-Status $id '/health') -eq 200) { return $id }
    }
    return 0
}

# --- verbs ---

function Invoke-Start {
    $count = -1
    if ($Word -ne '') {
        $count = Get-Number $Word
        if ($count -lt 1 -or $count -gt $NodesMax) { Fail-Usage "'$Word' is not a number of nodes from 1 to $NodesMax" }
    }
    $port = -1
    if ($env:KONTIKI_PORT) {
        $port = Get-Number $env:KONTIKI_PORT
        $most = 65536 - $NodesMax
        if ($port -lt 1 -or $port -gt $most) { Fail "KONTIKI_PORT: '$env:KONTIKI_PORT' is not a port from 1 to $most" 2 }
    }
    if (Read-Cluster) {
        if ($count -ge 0 -and $count -ne $script:First -and $count -ne $script:Nodes) {
            Fail "$Directory holds a cluster of $script:Nodes nodes, not $count; add a node with: $Self add, or begin anew with: $Self clean" 2
        }
        if ($port -ge 0 -and $port -ne $script:Port) { Fail "$Directory holds a cluster that begins at port $script:Port, not $port" 2 }
        $binary = Find-Binary $true
    } else {
        if ((Test-Path -LiteralPath $Directory) -and @(Get-ChildItem -LiteralPath $Directory -Force).Count -gt 0) {
            Fail "$Directory is not empty and not ours (it has no .kontiki-cluster); choose another KONTIKI_DIR"
        }
        $binary = Find-Binary $true
        [void][IO.Directory]::CreateDirectory($Directory)
        $script:Nodes = $NodesDefault
        if ($count -ge 0) { $script:Nodes = $count }
        $script:First = $script:Nodes
        $script:Port = 7101
        if ($port -ge 0) { $script:Port = $port }
        Write-Cluster
    }
    foreach ($id in 1..$script:Nodes) { Start-Node $id $binary }
    if (-not (Wait-Until { (Get-Leader) -ne 0 })) { Fail "no leader serves after $WaitReadySeconds s; the logs are in $Directory" }
    $all = Get-Addresses $script:Nodes
    $leader = Get-Leader
    $led = ''
    if ($leader -ne 0) { $led = ", led by $(Get-Address $leader)" }
    Write-Output "$script:Nodes node(s) on $all$led; data and logs in $Directory"
    Write-Output ''
    Write-Output "  & '$binary' cli -a '$all' put city Oslo"
    Write-Output "  redis-cli -p $script:Port GET city"
    Write-Output "  http://${HostName}:$script:Port/health in a browser"
    Write-Output ''
    Write-Output "  $Self status | kill ID | restart ID | add | stop | clean"
}

function Invoke-Stop {
    if (-not (Read-Cluster)) { Write-Output "no cluster in $Directory"; return }
    foreach ($id in 1..$script:Nodes) { [void](Stop-Node $id) }
    Write-Output "stopped; the data stay in $Directory"
}

function Invoke-Status {
    Confirm-Cluster
    $binary = Find-Binary $false
    foreach ($id in 1..$script:Nodes) {
        if (-not (Get-Node $id)) { [Console]::Error.WriteLine("node $id ($(Get-Address $id)) is not running") }
    }
    & $binary cli -a (Get-Addresses $script:Nodes) status
    exit $LASTEXITCODE
}

function Invoke-Kill {
    $id = Confirm-Id
    if (-not (Stop-Node $id)) { Fail "node $id is not running" }
    Write-Output "killed node $id ($(Get-Address $id))"
}

# Waits for an answer only, not for a quorum: after a lost majority the first node back cannot have one.
function Invoke-Restart {
    $id = Confirm-Id
    $binary = Find-Binary $false
    [void](Stop-Node $id)
    Start-Node $id $binary
    if (-not (Wait-Until { (Get-Status $id '/health') -ne 0 })) { Fail "node $id does not answer after $WaitReadySeconds s" }
    Write-Output "restarted node $id ($(Get-Address $id))"
}

# The new node counts from the moment it serves; until then the same command again continues a failed attempt.
function Invoke-Add {
    Confirm-Cluster
    if ($script:Nodes -ge $NodesMax) { Fail "$NodesMax nodes are the most that $Self runs" }
    $binary = Find-Binary $false
    $id = $script:Nodes + 1
    Start-Node $id $binary
    if (-not (Wait-Until { (Get-Status $id '/health') -eq 200 })) {
        [void](Stop-Node $id)
        Fail "node $id did not join within $WaitReadySeconds s"
    }
    $script:Nodes = $id
    Write-Cluster
    Write-Output "added node $id ($(Get-Address $id))"
}

function Invoke-Clean {
    if (-not (Read-Cluster)) {
        if (Test-Path -LiteralPath $Directory) { Fail "$Directory is not ours (it has no .kontiki-cluster): not removed" }
        Write-Output "no cluster in $Directory"
        return
    }
    foreach ($id in 1..$script:Nodes) { [void](Stop-Node $id) }
    Remove-Item -LiteralPath $Directory -Recurse -Force
    Write-Output "removed $Directory"
}

if ($Rest.Count -gt 0) { Fail-Usage "$Verb does not take so many words" }
if ($Word -ne '' -and $Verb -in 'stop', 'status', 'add', 'clean') { Fail-Usage "$Verb takes no further words" }
switch -CaseSensitive ($Verb) {
    'start' { Invoke-Start }
    'stop' { Invoke-Stop }
    'status' { Invoke-Status }
    'kill' { Invoke-Kill }
    'restart' { Invoke-Restart }
    'add' { Invoke-Add }
    'clean' { Invoke-Clean }
    '' { Fail-Usage 'no verb given' }
    default { Fail-Usage "unknown verb '$Verb'" }
}
